"""Each method does its paper's rule: small cases worked by hand."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from vidsparse.as_published import AS_PUBLISHED
from vidsparse.calibrated import write_calibrated
from vidsparse.calibration import choices_for, margin_for
from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.published import apply, published_for
from vidsparse.planner import Planner
from vidsparse.policies import semantic
from vidsparse.policies.choice import CHOICE
from vidsparse.policies.choosing import _empty_and_uneven, by_loss, by_recall
from vidsparse.policies.compensation import Levels, capped, most_alike
from vidsparse.policies.estimator import Estimate, Estimator, Measure
from vidsparse.policies.exact import Exact
from vidsparse.policies.geometric import Band, Disc, FrameBand
from vidsparse.policies.natten import Natten
from vidsparse.policies.observed import Observed, Sweep
from vidsparse.policies.orders import (
    Arranged,
    Axes,
    Checkerboard,
    Raster,
    Residues,
    Tile,
    coordinates,
)
from vidsparse.policies.peak import Peak
from vidsparse.policies.percentile import Percentile
from vidsparse.policies.ranked import Ranked
from vidsparse.policies.refined import Refined, candidate_mass, in_bits
from vidsparse.policies.rows import Rounding, Rows
from vidsparse.policies.selectors import Selection
from vidsparse.policies.tokens import Tokens
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def select(selector, scores, inputs, *, density=None, always=None, measure=Measure.LOG_MASS):
    """The block mask of ``(heads, M, N)`` scores."""
    blocks = inputs.blocks
    kept = blocks.always_kept if selector.keeps_diagonal else blocks.text_kept
    lists = selector.select(
        Selection(
            estimate=Estimate(scores=scores[None]), measure=measure, inputs=inputs, least=1,
            always=kept if always is None else always, density=density, way=1.0,
        )
    )  # fmt: skip
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for at in torch.cartesian_prod(*map(torch.arange, scores.shape[:2])).tolist():
        head, row = at
        mask[head, row, lists[1][0, head, row, : lists[0][0, head, row]].long()] = True
    return mask


def test_every_row_of_the_table_is_a_preset_once():
    names = [row.preset for row in AS_PUBLISHED]
    assert len(set(names)) == len(names)
    ours = {"quality", "balanced", "fast", "turbo", "semantic", "auto", "draft", "lite", "random"}
    assert set(names) == PRESETS.keys() - ours


# DraftAttention


def test_windows_of_draft_attention_are_blocks():
    positions = Tile(tile_frames=1, tile_height=8, tile_width=16).positions(TokenGrid(1, 16, 32))
    assert positions is not None
    at = positions.tolist()
    assert at[:16] == list(range(16))  # row 0, columns 0 to 15
    assert at[16:32] == list(range(32, 48))  # row 1
    assert (at[128], at[256]) == (16, 8 * 32)  # the windows at (0, 16) and at (8, 0)


def test_draft_attention_keeps_a_share_of_the_whole_map_and_all_that_tie(make_inputs):
    rows = torch.tensor([[0.7, 0.1, 0.1, 0.1], *[[0.25] * 4] * 3])
    inputs = make_inputs(TokenGrid(1, 8, 8), 16)
    keep = select(Percentile(), rows.log()[None], inputs, density=0.25)[0]
    assert keep.tolist() == [[True, False, False, False], *[[True] * 4] * 3]  # 13 of 16, not 4


def test_draft_attention_counts_windows_of_video_and_keeps_text_besides(make_inputs):
    # rows and columns 4 and 5 hold text; of the 16 entries of video the 4 best stay, all in row 0
    inputs = make_inputs(TokenGrid(1, 8, 8, 0, 20), 16)
    scores = torch.full((1, 6, 6), -4.0)
    scores[0, 0, :4] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    scores[0, 1, :4] = torch.tensor([-9.0, -9.5, -9.0, -8.0])
    scores[0, :, 4:] = 50.0
    keep = select(Percentile(), scores, inputs, density=0.25)[0]
    assert keep[4:].all()
    assert keep[:, 4:].all()
    by_hand = [[1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert keep[:4, :4].int().tolist() == by_hand


def test_draft_attention_is_published_with_its_own_warm_up():
    schedule = PRESETS["draft-attention"].schedule
    assert (schedule.warmup, schedule.ramp_until, schedule.dense_layers) == (0.3, 0.3, 1)


@pytest.mark.parametrize(("text", "density"), [(0, 0.25), (256, 0.25), (256, 0.1)])
def test_draft_attention_computes_the_share_that_its_rule_says(make_inputs, text, density):
    grid = TokenGrid(4, 16, 32, 0, text)
    q, k = torch.randn(2, 1, 2, grid.tokens, 8)
    inputs = make_inputs(grid, 128, q=q, k=k, v=k)
    policy = PRESETS["draft-attention"].policy
    arranged = policy.order.arrange(inputs).inputs
    made = policy.plan(policy.estimator.estimate(arranged), arranged, density=density).density
    video, whole = grid.video_tokens, grid.tokens
    entries = (video // 128) ** 2
    kept = (entries - int((1 - density) * entries) + 1) / entries  # the percentile itself stays
    of_rule = (kept * video**2 + whole**2 - video**2) / whole**2
    assert made == pytest.approx(of_rule, rel=0.01)


# LiteAttention


def observed(q, k, rule, *, steps=1, block=16):
    """The blocks that are visited at each step, boolean ``(M, N)``, and an engine that goes on."""
    policy = dataclasses.replace(PRESETS["lite-attention"].policy, estimator=rule, block=block)
    preset = dataclasses.replace(PRESETS["lite-attention"], policy=policy, min_tokens=0)
    engine, found = SparseAttention(preset, strict=True), []
    engine.observers.append(lambda call, work, *rest: found.append(work.plan.to_block_mask()[0, 0]))
    grid = TokenGrid(1, 1, q.shape[1])
    for step in range(steps):
        progress = Progress(tuple(i / steps for i in range(steps + 1)), step)
        engine(q, k, k, Call(grid=grid, layer=3, step=step, progress=progress), dense)
    return found


def peaked(scores, block=16):
    """q and k whose scores of every row are these, one for each block of keys."""
    k = torch.tensor(scores).repeat_interleave(block)[None, :, None, None]
    return torch.ones_like(k), k


def test_lite_attention_drops_what_never_came_near_the_maximum_so_far():
    # visited from block 3 to 0 at even steps: block 3 is the first, block 2 leads, 1 and 0 lag by
    # 3 and 14 natural units, 4.3 and 20 in log2; the next step goes up and starts at block 1
    q, k = peaked([-6.0, 5.0, 8.0, 0.0])
    rule = Observed(margin=-10.0, sweep=Sweep.ALTERNATE)
    visits = observed(q, k, rule, steps=4)
    assert visits[0].all()
    # of blocks 1, 2, 3 going up, 3 lags by 8 units, 11.5 in log2; a query block sees itself always
    for step, row in ((1, [0, 1, 1, 1]), (2, [0, 1, 1, 0]), (3, [0, 1, 1, 0])):
        off = ~torch.eye(4, dtype=torch.bool)
        assert torch.equal(visits[step] & off, torch.tensor([row] * 4).bool() & off)


def test_lite_attention_never_drops_what_must_stay_and_takes_margins_by_layer_and_step(tmp_path):
    q, k = peaked([-6.0, 5.0, 8.0, 0.0])
    kept = Observed(margin=-1.0, sweep=Sweep.ALTERNATE, must_keep="5-6,63-63")
    last = observed(q, k, kept, steps=3)[-1]
    assert last[:, [0, 3]].all()
    assert not last[2, 1]
    path = write_calibrated(
        tmp_path / "margins.toml", "lite-attention", [(0.5, {"3": [-30.0]}), (1.0, {"3": [-5.0]})]
    )
    preset = PRESETS["lite-attention"].override({"margins": str(path)})
    visits = observed(q, k, preset.policy.estimator, steps=4)
    assert [int(each[2].sum()) for each in visits] == [
        4,
        4,
        4,
        3,
    ]  # the -30 of the first half drops none


def test_a_margin_is_the_largest_whose_error_is_within_the_target():
    q, k = (x.transpose(1, 2) for x in peaked([-6.0, 5.0, 8.0, 0.0]))
    v = torch.randn(1, 1, 64, 1)
    rule = Observed(sweep=Sweep.ALTERNATE)
    chosen = [margin_for(q, k, v, error=e, block=16, rule=rule) for e in (1e-7, 1e-3, 0.5)]
    # block 3 comes first, 2 leads it; block 1 lags by 4.3 and holds e^-3 of the mass, 0 by 20.2
    assert chosen == [-20.0, -5.0, 0.0]
    with pytest.raises(BadInputError, match="must_keep takes ranges of positions"):
        Observed(must_keep="5-")
    with pytest.raises(BadInputError, match="cannot read the calibration file"):
        PRESETS["lite-attention"].override({"margins": "none.toml"})


# SVG


def plan_of(policy, inputs, estimator, order):
    policy = dataclasses.replace(policy, estimator=estimator, order=order, alternatives=None)
    arranged = order.arrange(inputs).inputs
    return policy.plan(estimator.estimate(arranged), arranged)


@pytest.mark.parametrize("axes", ["fhw", "hwf"])
def test_the_sink_of_svg_is_the_first_positions_of_either_order_beside_the_density(
    make_inputs, axes
):
    grid = TokenGrid(8, 4, 8)  # two blocks a frame
    inputs, policy = make_inputs(grid, 16), PRESETS["svg"].policy
    policy = dataclasses.replace(policy, density=0.34)
    without, sink = (
        plan_of(policy, inputs, Band(sink=each), Axes(axes=axes)) for each in (False, True)
    )
    at = torch.arange(16)
    band = (at[:, None] - at).abs() <= 2  # 74 of 256 blocks; one wider is 100, more than .34
    assert torch.equal(without.to_block_mask()[0, 0], band)
    assert torch.equal(sink.to_block_mask()[0, 0], band | (at < 2))
    assert Band(sink=True).besides(grid) == 1 / 8


def test_what_is_kept_beside_a_density_is_paid_for_by_a_mean_density():
    preset = PRESETS["svg"].override({"mean_density": 0.5, "sink": True, "min_tokens": 0})
    run, grid = Progress.first(10), TokenGrid(10, 8, 8)
    full = full_density(preset, run, besides=preset.policy.besides(grid))
    # one step of ten is dense, a tenth of what the others do not keep is the sink's
    assert 0.1 + 0.9 * (full + (1 - full) * 0.1) == pytest.approx(0.5, abs=1e-3)
    assert forecast(preset, grid, 10, None).mean_density == pytest.approx(0.5, abs=0.03)


# SVG2


def test_svg2_clusters_while_dense_and_goes_on_from_its_centroids(monkeypatch):
    calls = []
    kmeans = semantic.kmeans

    def spy(x, number, *, iterations, centroids=None, **rest):
        made = kmeans(x, number, iterations=iterations, centroids=centroids, **rest)
        calls.append((iterations, centroids, made.centroids))
        return made

    monkeypatch.setattr(semantic, "kmeans", spy)
    preset = PRESETS["svg2"].override({"min_tokens": 0, "q_clusters": 4, "kv_clusters": 6})
    engine, grid = SparseAttention(preset, strict=True), TokenGrid(2, 8, 8)
    for step in range(4):
        for layer in (0, 1):  # the first layer is always dense, and never clustered
            for branch in ("cond", "uncond"):
                q, k, v = torch.randn(3, 1, 128, 2, 8)
                progress = Progress((0.0, 0.1, 0.2, 0.3, 0.4), step)
                call = Call(grid=grid, layer=layer, step=step, progress=progress, branch=branch)
                engine(q, k, v, call, dense)
    # queries and keys of one branch at each of 4 steps, of which the first 3 are dense
    assert [each[0] for each in calls] == [50, 50, 2, 2, 2, 2, 2, 2]
    for before, now in zip(calls, calls[2:], strict=False):
        assert torch.equal(now[1], before[2])
    assert engine.stats.dense_steps_share == 0.75


# AdaSpa and SparseD


@pytest.mark.parametrize(
    ("density", "by_hand"), [(0.2, (0.1, 0.1, 0.3, 0.3)), (0.8, (0.6, 0.6, 1.0, 1.0))]
)
def test_adaspa_has_three_classes_of_heads_by_what_they_keep(make_inputs, density, by_hand):
    recalls = torch.tensor([[0.95, 0.9, 0.7, 0.6]])  # two are above .8
    inputs = make_inputs(TokenGrid(1, 8, 8), 16)
    assert Rows._density(recalls, density, inputs)[0].tolist() == pytest.approx(by_hand)
    all_good = torch.full((1, 5), 0.99)  # of five heads two may give, and two then take
    found = Rows._density(all_good, 0.2, inputs)[0].tolist()
    assert sorted(found) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3])


def test_adaspa_keeps_equally_many_blocks_in_every_row_of_a_head(make_inputs):
    # head 0 has nearly all its mass in one block of each row, head 1 spreads it over ten
    scores = torch.zeros(2, 10, 10)
    scores[0] += 20 * torch.eye(10).roll(1, 1)
    scores[1] += 0.01 * torch.arange(10)
    inputs = make_inputs(TokenGrid(1, 10, 16), 16)
    keep = select(Rows(classes=True), scores, inputs, density=0.2)
    assert torch.equal(keep[0], torch.eye(10).roll(1, 1).bool())  # .1, and no diagonal
    assert torch.equal(keep[1], (torch.arange(10) >= 7).expand(10, 10))  # .3
    assert keep.float().mean() == pytest.approx(0.2)


def test_adaspa_searches_at_two_steps_and_divides_by_the_sums_of_the_first(make_inputs):
    preset = PRESETS["adaspa"].override({"min_tokens": 0, "block": 16})
    engine, searched = SparseAttention(preset), []
    engine.observers.append(lambda call, work, *rest: searched.append((call.step, work.plan)))
    for step in range(50):
        q, k, v = torch.randn(3, 1, 64, 2, 8)
        progress = dataclasses.replace(Progress.first(50), at=step)
        engine(q, k, v, Call(grid=TokenGrid(1, 8, 8), layer=0, step=step, progress=progress), dense)
    masks = {step: plan.to_block_mask() for step, plan in searched}
    new = [s for s in range(11, 50) if not torch.equal(masks[s], masks[s - 1])]
    assert (min(masks), new) == (10, [30])
    q = torch.ones(1, 1, 32, 1)
    first = make_inputs(TokenGrid(1, 4, 8), 16, q=q, k=torch.zeros(1, 1, 32, 1), v=q)
    later = dataclasses.replace(first, k=first.k + 1, step=20)
    rule = Exact(cached_lse=True)
    assert rule.estimate(first).scores.exp().flatten().tolist() == pytest.approx([0.5] * 4)
    assert rule.estimate(later).scores.exp().flatten().tolist() == pytest.approx([0.5 * math.e] * 4)


def test_sparsed_keeps_one_block_beyond_its_share_and_searches_once(make_inputs):
    scores = torch.arange(10.0).expand(1, 10, 10)
    inputs = make_inputs(TokenGrid(1, 10, 16), 16)
    keep = select(Rows(rounding=Rounding.BEYOND), scores, inputs, density=0.3)
    assert torch.equal(keep[0], (torch.arange(10) >= 6).expand(10, 10))  # int(3.0) + 1 of 10
    text = make_inputs(TokenGrid(1, 10, 16, 0, 16), 16)  # one more, of text
    keep = select(
        Rows(rounding=Rounding.BEYOND), torch.arange(11.0).expand(1, 11, 11), text, density=0.3
    )
    assert keep[0].sum(dim=-1).tolist() == [5] * 10 + [11]
    schedule = PRESETS["sparsed"].schedule
    assert (schedule.warmup, schedule.ramp_until, schedule.replan > 1000) == (0.2, 0.2, True)


# PSA


def test_psa_ranks_blocks_by_the_highest_probability_of_the_sampled_tokens(make_inputs):
    grid = TokenGrid(1, 1, 40)  # blocks of 16, the last of 8 tokens
    q, k = torch.randn(2, 1, 2, 40, 4)
    inputs = make_inputs(grid, 16, q=q, k=k, v=k, scale=0.5, heads=2, layer=3, step=5)
    places = Peak().places(inputs)
    assert places.shape == (2, 4)  # a quarter of 16, other ones in each head
    assert not torch.equal(places[0], places[1])
    found = Peak().estimate(inputs).scores.exp()
    for head in range(2):
        at = (torch.arange(3)[:, None] * 16 + places[head]).clamp(max=39).flatten()
        share = (q[0, head, at] @ k[0, head, at].T * 0.5).softmax(dim=-1)
        for i in range(3):
            for j in range(3):
                by_hand = share[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].max()
                assert found[0, head, i, j] == pytest.approx(float(by_hand), rel=1e-5)


def test_psa_reads_through_no_larger_means_than_keys_allow(make_inputs):
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    blocks = [
        torch.stack([x, y] * 8),  # 2: ends apart; so are those of 4 and of 8
        torch.stack([x, x, y, y] * 4),  # 2 alike, 4 and 8 apart
        torch.stack([x, y, x, y, y, x, y, x] * 2),  # 2 and 4 apart, 8 alike
        x.expand(16, 2),
    ]
    k = torch.cat(blocks)[None, None]
    inputs = make_inputs(TokenGrid(1, 8, 8), 16, q=k, k=k, v=k)
    most = most_alike(inputs)
    assert most.tolist() == [[[1, 2, 8, 8]]]
    none = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    found = {1: none, 2: none.clone(), 8: ~none}
    found[2][..., 3] = True
    found[8][..., 3] = False
    made = {tokens: keep[0, 0, 0].int().tolist() for tokens, keep in capped(found, most).items()}
    assert made == {1: [1, 0, 0, 0], 2: [0, 1, 0, 1], 4: [0, 0, 0, 0], 8: [0, 0, 1, 0]}


def test_psa_has_the_shares_of_its_authors():
    policy = PRESETS["psa"].policy
    levels = policy.compensation
    assert isinstance(levels, Levels)
    assert (policy.density, levels.shares) == (0.1, {2: 0.05, 8: 0.2})
    grid = TokenGrid(40, 8, 16)
    q, k, v = torch.randn(3, 1, grid.tokens, 1, 8)
    engine, works = SparseAttention(PRESETS["psa"], strict=True), []
    engine.observers.append(lambda call, work, *rest: works.append(work))
    engine(q, k, v, Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.9)), dense)
    counts = [
        plan.to_block_mask()[0, 0].sum(-1)
        for plan in (works[0].plan, *(level.plan for level in works[0].levels))
    ]
    assert [int(each[:-1].max()) for each in counts] == [4, 2, 8]  # of 40 blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance(Estimator):
    """Of ten blocks, the last the most important."""

    of: tuple[float, ...] = (0.049, 0.07, 0.052, 0.08, 0.059, 0.06, 0.11, 0.09, 0.15, 0.28)

    measure: ClassVar[Measure] = Measure.LOG_MASS

    def estimate(self, inputs):
        return Estimate(scores=torch.tensor(self.of).log().expand(1, 1, 10, 10))


def test_psa_takes_levels_up_to_cumulative_shares_of_importance(make_inputs):
    row = next(row for row in published_for("psa") if "Wan2.1-T2V-14B" in row.releases)
    preset = PRESETS["psa"].override({**row.settings, "estimator": Importance(), "order": "raster"})
    grid = TokenGrid(10, 8, 16)
    q, k, v = torch.randn(3, 1, 1, grid.tokens, 8)
    work = Planner(preset.policy).work(make_inputs(grid, 128, q=q, k=k, v=v), 1.0)
    # .28 + .15 hold .4 of the last row, .11 more hold .5, .09 more .6; .08, .07, .06 then hold .8
    kept = {1: work.plan, **{level.tokens: level.plan for level in work.levels}}
    found = {tokens: plan.to_block_mask()[0, 0, 9].nonzero()[:, 0].tolist()
             for tokens, plan in kept.items()}  # fmt: skip
    assert found == {1: [8, 9], 2: [6], 4: [7], 8: [1, 3, 5]}
    assert preset.policy.floor == 0.06
    assert preset.policy.density is None
    with_density = apply(PRESETS["psa"].override({"mean_density": 0.5}), "Wan2.1-T2V-14B")[0]
    assert with_density.policy.any_density == 0.5
    assert with_density.policy.selector == Ranked()


# RainFusion, Sparse-vDiT and PAROAttention: what heads choose


def alike_along(grid, axes):
    """q and k, a head for each axis or two, whose tokens look alike where they agree along it."""
    place = coordinates(grid)
    strides = torch.tensor([grid.height * grid.width, grid.width, 1])
    sizes = grid.frames * grid.height * grid.width
    heads = [torch.eye(sizes)[(place[:, of] * strides[of]).sum(dim=-1)] for of in axes]
    return 12 * torch.stack(heads)[None]


def test_half_of_a_checkerboard_is_every_other_token():
    grid = TokenGrid(2, 4, 8)
    positions = Checkerboard().positions(grid)
    assert positions is not None
    sums = coordinates(grid)[positions.long()].sum(dim=-1)
    assert (sums[:32] % 2 == 0).all()
    assert (sums[:16] % 4 == 0).all()
    assert (sums[:8] % 8 == 0).all()


def test_rainfusion_asks_for_time_first_then_for_space_and_else_thins_keys(make_inputs):
    grid = TokenGrid(4, 8, 8)
    # heads that see their own place in all frames, their own frame, what is alike anywhere
    x = alike_along(grid, [[1, 2], [0]])
    far = torch.randn(1, 1, 256, x.shape[-1])
    q = torch.cat([x, torch.zeros(1, 1, 256, x.shape[-1])], dim=1)
    k = torch.cat([x, far], dim=1)
    inputs = make_inputs(grid, 16, q=q, k=k, v=q, heads=3, density=0.5)
    policy = dataclasses.replace(PRESETS["rainfusion"].policy, block=16)
    work = Planner(policy).work(inputs, 1.0)
    chosen = inputs.state.get(CHOICE)
    assert chosen is not None
    assert chosen.tolist() == [[0, 1, 2]]
    keep = work.plan.to_block_mask()[0, 2]
    off = ~torch.eye(16, dtype=torch.bool)
    by_hand = (torch.arange(16) < 7).expand(16, 16)  # and the diagonal, of one half in all
    assert torch.equal(keep & off, by_hand & off)
    # both bands hold all of head 0's mass on a map of one frame: then time is asked first
    assert policy.alternatives is not None
    losses = by_recall(
        inputs,
        policy.alternatives,
        3,
        lambda at: torch.ones(1, 1, 16, 16, dtype=torch.bool),
        lambda at, rows: rows.under(Arranged(inputs), centroids=False),
    )
    assert losses.argmin(dim=0).tolist() == [[0, 0, 0]]


def test_sparse_vdit_weighs_error_against_cost():
    rule = PRESETS["sparse-vdit"].policy.alternatives
    assert rule is not None
    # the paper's modes but for nothing: skip, diagonal, many, stripes, full; two heads
    errors = torch.tensor([[0.9, 1.5], [0.1, 1.5], [0.3, 1.5], [0.4, 1.5], [0.0, 0.0]])[:, None]
    lost = by_loss(errors, torch.ones(1, 1), [0.0, 0.3, 0.3, 0.2, 1.0], rule)
    assert lost[:, 0, 0].tolist() == pytest.approx([0.9, 0.25, 0.45, 0.5, 1.0])
    assert lost.argmin(dim=0).tolist() == [[1, 4]]


def test_a_head_that_sparse_vdit_skips_is_zero_but_for_text_and_a_full_one_is_dense(tmp_path):
    names = ["skip", "full", "diagonal"]
    path = write_calibrated(tmp_path / "modes.toml", "sparse-vdit", [(1.0, {"0": names})])
    preset = PRESETS["sparse-vdit"].override({"choices": path, "min_tokens": 0, "block": 16})
    grid = TokenGrid(4, 8, 8, 3, 5)
    q, k, v = torch.randn(3, 1, grid.tokens, 3, 8)
    engine = SparseAttention(preset, strict=True)
    call = Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.0))
    out, exact = engine(q, k, v, call, dense), dense(q, k, v)
    assert out[:, 3:-5, 0].eq(0).all()
    torch.testing.assert_close(out[:, :3, 0], exact[:, :3, 0])
    torch.testing.assert_close(out[:, :, 1], exact[:, :, 1])
    assert not torch.allclose(out[:, :, 2], exact[:, :, 2], atol=1e-2)
    with pytest.raises(BadInputError, match="'hwf', and choices takes one of diagonal, multi"):
        PRESETS["sparse-vdit"].override(
            {"choices": write_calibrated(path, "paro", [(1.0, {"0": ["hwf"]})])}
        )


def test_paro_takes_the_nesting_that_makes_maps_blocky_and_keeps_it_in_a_file(tmp_path):
    grid = TokenGrid(8, 4, 8)
    # heads that look along one place's frames, along one frame, along one column
    x = alike_along(grid, [[1, 2], [0], [2]])
    small = PRESETS["paro"].override({"block": 16})
    chosen = choices_for(small, [(x, x, x)] * 2, grid, scale=1.0)
    assert chosen[0][-1] == "f"  # frames side by side
    assert chosen[1][0] == "f"  # one frame after another
    assert chosen[2][0] == "w"
    path = write_calibrated(tmp_path / "orders.toml", "paro", [(1.0, {"0": chosen})])
    preset = small.override({"choices": path, "min_tokens": 0})
    engine, works = SparseAttention(preset), []
    engine.observers.append(lambda call, work, *rest: works.append(work))
    q, k, v = torch.randn(3, 1, grid.tokens, 3, 8)
    engine(q, k, v, Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.5)), dense)
    for head, axes in enumerate(chosen):
        positions = Axes(axes=axes).positions(grid)
        raster = torch.arange(256) if positions is None else positions
        assert torch.equal(works[0].q_order[0, head].long(), raster.long())


def test_blockiness_is_the_metric_of_the_paper(make_inputs):
    # scores so that every query puts all its mass on the first half: of 4 key blocks 2 are empty
    k = torch.cat([torch.zeros(32), torch.full((32,), -50.0)])[None, None, :, None]
    inputs = make_inputs(TokenGrid(1, 8, 8), 16, q=torch.ones_like(k), k=k, v=k)
    empty, uneven = _empty_and_uneven(inputs)
    assert empty.tolist() == [[0.5]]
    assert uneven[0, 0] == pytest.approx(1.0)  # every block is even, empty ones too
    one = torch.full((64,), -50.0).index_fill(0, torch.tensor([5]), 0.0)[None, None, :, None]
    spiked = make_inputs(TokenGrid(1, 8, 8), 16, q=torch.ones_like(k), k=one, v=k)
    empty, uneven = _empty_and_uneven(spiked)
    assert empty.tolist() == [[1.0]]  # one of 16 columns: 94 % of the entries are small
    assert uneven[0, 0] == pytest.approx((16 + 3) / 4)


# Re-ttention


def test_the_band_of_re_ttention_is_43_of_1350_places_in_every_frame():
    grid, rule = TokenGrid(13, 30, 45), FrameBand()
    assert rule.reach(grid) == 21
    place = torch.arange(1350)
    near = (place[:, None] - place).abs() <= 21
    assert rule.token_density(grid, 64) == pytest.approx(float(near.float().mean()))
    found = forecast(PRESETS["re-ttention"], grid, 50, None)
    assert found.token_density == pytest.approx(0.0316, abs=5e-4)
    assert found.block_density == pytest.approx(0.0325, abs=1e-4)  # of whole blocks of 64


def test_re_ttention_gives_the_exact_probabilities_of_what_it_keeps_and_keeps_its_residual():
    # e^s = 3, 1, 1, 1 of four places, two of them kept: ratio 4/6, kept probabilities .5 and .167
    grid = TokenGrid(1, 1, 64)
    k = torch.zeros(1, 64, 1, 1)
    k[:, :16] = math.log(3)
    q, v = torch.ones_like(k), torch.eye(4).repeat_interleave(16, dim=0)[None, :, None]
    preset = PRESETS["re-ttention"].override(
        {"min_tokens": 0, "block": 16, "order": "raster", "estimator": Pair(), "warmup": 0.0,
         "ramp_until": 0.0}
    )  # fmt: skip
    q, k = (torch.cat([x, torch.zeros(1, 64, 1, 3)], dim=-1) for x in (q, k))
    engine, call = (
        SparseAttention(preset),
        Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.5), scale=1.0),
    )
    exact = torch.tensor([3.0, 1.0, 1.0, 1.0]) / 6
    torch.testing.assert_close(engine(q, k, v, call, dense)[0, 0, 0], exact)
    state = next(iter(engine._planner._states._values.values()))
    torch.testing.assert_close(state.get("ratio of denominators")[0, 0, 0], torch.tensor([4 / 6]))
    residual = torch.tensor([0.0, 0.0, 1.0, 1.0]) / 6
    torch.testing.assert_close(state.get("residual")[0, 0, 0], residual)
    kept = torch.tensor([0.75, 0.25, 0.0, 0.0])
    for step, ratio in ((2, 4 / 6 + 0.08), (4, 4 / 6 + 0.16)):
        out = engine(q, k, v, dataclasses.replace(call, step=step), dense)[0, 0, 0]
        torch.testing.assert_close(out, ratio * kept + residual)
    measured = engine(q, k, v, dataclasses.replace(call, step=5), dense)[0, 0, 0]
    torch.testing.assert_close(measured, exact)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair(FrameBand):
    """The first two of four blocks, for the query of the first."""

    def estimate(self, inputs):
        at = torch.arange(4)
        return Estimate(scores=-(at > 1).float().expand(1, 1, 4, 4), threshold=-0.5)


def test_a_residual_that_would_not_fit_is_refused_with_its_size():
    engine = SparseAttention(PRESETS["re-ttention"])
    q = torch.zeros(1, 1, 1, 128).bfloat16().expand(1, 75_600, 40, 128)
    call = Call(grid=TokenGrid(21, 45, 80), layer=0, layers=40, step=0, progress=Progress.first(50))
    with pytest.raises(BadInputError, match=r"keep 31\.2 GB .* most_gigabytes is 24: .*=32 where"):
        engine(q, q, q, call, lambda *x: x[0])
    allowed = PRESETS["re-ttention"].override({"most_gigabytes": 32})
    assert SparseAttention(allowed)(q, q, q, call, lambda *x: x[0]) is q


# GNA and CLEAR


def starts(length, window, stride):
    """Where the window of each position starts, along one axis."""
    rule = Natten(window_width=window, stride_width=stride)
    place = coordinates(TokenGrid(1, 1, length))
    inside = rule.distance(TokenGrid(1, 1, length), place[:, None], place[None]) <= 1
    assert (inside.sum(dim=-1) == window).all()
    return inside.int().argmax(dim=-1).tolist()


def test_windows_of_gna_start_where_the_paper_puts_them():
    assert starts(8, 4, 2) == [0, 0, 1, 1, 3, 3, 4, 4]
    rows = starts(48, 24, 8)
    assert [rows[8 * i] for i in range(6)] == [0, 0, 8, 16, 24, 24]
    assert starts(30, 18, 16) == [0] * 16 + [12] * 14


def test_a_dilated_window_holds_every_so_many_th_token():
    grid = TokenGrid(1, 1, 11)
    rule = Natten(window_width=2, stride_width=1, dilation_width=3)
    place = coordinates(grid)
    inside = rule.distance(grid, place[:, None], place[None]) <= 1
    # residues 0: 0 3 6 9, 1: 1 4 7 10, 2: 2 5 8; leader j, start j - 1
    by_hand = {0: [0, 3], 3: [0, 3], 6: [3, 6], 9: [6, 9], 4: [1, 4], 10: [7, 10], 8: [5, 8]}
    for query, keys in by_hand.items():
        assert inside[query].nonzero().flatten().tolist() == keys
    assert rule.token_density(grid, 16) == pytest.approx(float(inside.float().mean()))
    order = Residues(tile_width=2, dilation_width=3).positions(grid)
    assert order is not None
    assert order.tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8]


def test_gna_computes_no_more_than_its_window_on_hunyuan_video():
    found = forecast(PRESETS["gna"], TokenGrid(30, 48, 80), 50, None)
    assert found.token_density == pytest.approx(0.09)
    assert found.block_density == pytest.approx(0.09, rel=0.01)
    flux = Natten(window_height=80, window_width=80, stride_height=16, stride_width=16)
    assert flux.token_density(TokenGrid(1, 256, 256), 128) == pytest.approx(0.0977, abs=1e-4)
    with pytest.raises(BadInputError, match="stride_width=30 is more than window_width=24"):
        Natten(stride_width=30)


@pytest.mark.parametrize(("radius", "is_seen"), [(2.0, False), (2.01, True)])
def test_the_circle_of_clear_leaves_out_what_lies_on_it(make_inputs, radius, is_seen):
    # of neighbouring blocks of a line the nearest of the tokens looked at are two apart
    rule = Disc(radius=radius, overlap=1 / 64)
    inputs = make_inputs(TokenGrid(1, 1, 48), 16)
    policy = dataclasses.replace(PRESETS["clear"].policy, order=Raster(), estimator=rule)
    keep = policy.plan(rule.estimate(inputs), inputs).to_block_mask()[0, 0]
    at = torch.arange(3)
    assert torch.equal(keep, (at[:, None] - at).abs() <= int(is_seen))


# Twilight


def test_twilight_keeps_the_fewest_candidates_that_hold_its_share(make_inputs):
    # one query, keys in five blocks of 16: of .5 .3 .1 .1 the first three hold .85, and the fifth
    # block, the likeliest of all, is none of the candidates
    k = torch.tensor([0.5, 0.3, 0.1, 0.1, 5.0]).log().repeat_interleave(16)
    k = torch.stack([k, torch.zeros(80)], dim=-1)[None, None]
    q = torch.tensor([1.0, 0.0]).expand(1, 1, 80, 2)
    inputs = make_inputs(TokenGrid(1, 8, 10), 16, q=q, k=k, v=k)
    draft = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]).expand(1, 5, 5)
    none = torch.zeros(5, 5, dtype=torch.bool)
    rule = Refined(p=0.85, shortlist=0.8)
    keep = select(rule, draft, inputs, always=none)
    assert torch.equal(keep[0], torch.tensor([1, 1, 1, 0, 0]).bool().expand(5, 5))
    more = select(dataclasses.replace(rule, p=0.95), draft, inputs, always=none)
    assert torch.equal(more[0], torch.tensor([1, 1, 1, 1, 0]).bool().expand(5, 5))


def test_keys_of_four_bits_have_sixteen_steps_from_their_smallest_to_their_largest():
    x = torch.tensor([[-1.0, -0.96, 0.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    steps = torch.tensor([0.0, 0.0, 5.0, 15.0]) * 0.2 - 1.0  # .04 of a step of .2 is none
    torch.testing.assert_close(in_bits(x, 4), torch.stack([steps, x[1]]))


def test_the_mass_of_candidates_is_their_attention_with_a_ragged_end(make_inputs):
    grid = TokenGrid(1, 1, 40)
    q, k = torch.randn(2, 1, 2, 40, 4)
    inputs = make_inputs(grid, 16, q=q, k=k, v=k, scale=0.7)
    index = torch.tensor([[0, 2, 1], [1, 0, 0], [0, 1, 2]])[None, None].int()
    count = torch.tensor([2, 1, 3])[None, None].int()
    keep = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]]).bool()
    scores = q @ in_bits(k, 4).mT * 0.7
    token = torch.arange(40) // 16
    share = scores.masked_fill(~keep[token][:, token], -math.inf).softmax(dim=-1)
    by_hand = torch.stack(
        [
            torch.stack(
                [share[:, :, token == i][..., token == j].sum(-1).mean(-1) for j in range(3)], -1
            )
            for i in range(3)
        ],
        2,
    )
    torch.testing.assert_close(candidate_mass(inputs, count, index, 4), by_hand)


# VMoBA


@pytest.mark.parametrize(
    ("similarity", "picked"),
    [  # of the first block, as they are moved to [0, 1]
        ([0.2, 1.0, 0.6, 0.0], [1, 1, 0, 0]),  # own .111 of 1.8; .139 more is in block 1
        ([1.0, 0.5, 0.25, 0.0], [1, 1, 0, 0]),  # own .571 is enough, and one follows all the same
        ([0.0, 0.3, 1.0, 0.9], [1, 0, 1, 0]),  # own 0 of 2.2, block 2 has .4545
        ([0.0, 1.0, 0.99, 0.98, 0.97, 0.96], [1, 1, 1, 0, 0, 0]),  # .204 of 4.9, then .406
    ],
)
def test_a_token_of_vmoba_picks_its_own_box_and_the_most_similar_up_to_a_quarter(
    similarity, picked
):
    scores = (torch.tensor(similarity) * 7 - 3)[None, None, None]  # moved back to [0, 1]
    own = torch.arange(len(similarity)) == 0
    found = Tokens(p=0.25)._picked(scores, own, None, 1.0)
    assert found[0, 0, 0].int().tolist() == picked
    two = Tokens(p=0.25)._picked(scores, own, 2 / len(similarity), 1.0)
    assert int(two.sum()) == 2


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_vmoba_attends_from_each_token_to_exactly_the_boxes_that_it_picked(layer):
    grid = TokenGrid(5, 7, 9, 3, 4)  # no box divides an axis
    preset = PRESETS["vmoba"].override({"min_tokens": 0})
    engine, works = SparseAttention(preset, strict=True), []
    engine.observers.append(lambda call, work, *rest: works.append(work))
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 8)
    call = Call(grid=grid, layer=layer, step=0, progress=Progress.alone(0.5))
    out = engine(2 * q, k, v, call, dense)
    place = coordinates(grid)
    sizes = [(2, 7, 9), (5, 3, 4), (4, 6, 4)][layer]
    boxes = place // torch.tensor(sizes)
    number = boxes.amax(dim=0) + 1
    box = (boxes[:, 0] * number[1] + boxes[:, 1]) * number[2] + boxes[:, 2]
    of_token = torch.cat([torch.full((3,), -1), box, torch.full((4,), -1)])
    pairs = 0
    for head in range(2):
        query, key = 2 * q[0, :, head], k[0, :, head]
        means = torch.stack([key[of_token == i].mean(dim=0) for i in range(int(number.prod()))])
        own = of_token[:, None] == torch.arange(len(means))
        chosen = Tokens()._picked((query @ means.T)[None, None], own, None, 1.0)[0, 0]
        seen = chosen[:, of_token] | (of_token < 0) | (of_token < 0)[:, None]
        scores = (query @ key.T / math.sqrt(8)).masked_fill(~seen, -math.inf)
        torch.testing.assert_close(out[0, :, head], scores.softmax(-1) @ v[0, :, head])
        pairs += int(seen.sum())
    assert engine.stats.mean_density == pytest.approx(pairs / (2 * grid.tokens**2))
    assert works[0].plan.density >= engine.stats.mean_density
