"""Masks exact to the token: each rule by hand, from the preset to the output of attention."""

import functools
import itertools

import pytest
import torch

from vidsparse.comparison.attention_error import ErrorMeter
from vidsparse.errors import BadInputError
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.kernels.validate import validated
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention


def places(grid):
    return list(itertools.product(range(grid.frames), range(grid.height), range(grid.width)))


def window_of(i, length, window, stride=1, dilation=1):
    """The positions that one sees along an axis, as NATTEN has it."""
    group = list(range(i % dilation, length, dilation))
    at, size = group.index(i), min(window, len(group))
    leader = min(at // stride * stride + stride // 2, len(group) - 1)
    start = min(max(leader - size // 2, 0), len(group) - size)
    return group[start : start + size]


def gna(grid, q, k):
    rules = ((grid.frames, 2, 1, 1), (grid.height, 3, 2, 1), (grid.width, 2, 2, 2))
    return all(j in window_of(i, *rule) for i, j, rule in zip(q, k, rules, strict=True))


def clear(grid, q, k):
    return (q[1] - k[1]) ** 2 + (q[2] - k[2]) ** 2 < 3.5**2


def freeswim(grid, q, k):
    return k[1] in window_of(q[1], grid.height, 5) and k[2] in window_of(q[2], grid.width, 3)


def radial(grid, q, k, block=16, decay=0.2):
    apart, tokens = abs(q[0] - k[0]), grid.height * grid.width
    if apart <= 1 or k[0] == 0:
        return True
    length = 2.0 ** (tokens.bit_length() - apart.bit_length())
    if length < block and apart % max(1, int(block / length)):
        return False
    at = [x[1] * grid.width + x[2] for x in (q, k)]
    return abs(at[0] - at[1]) <= max(decay * length, block)


RULES = {
    "gna": (gna, "3+3x7x8+2", {
        "window_frames": 2, "window_height": 3, "window_width": 2, "stride_frames": 1,
        "stride_height": 2, "stride_width": 2, "dilation_width": 2, "block": 16,
        "tile_frames": 1, "tile_height": 4, "tile_width": 2,
    }),
    "clear": (clear, "5+1x13x14", {"radius": 3.5, "block": 16, "tile_height": 4, "tile_width": 4}),
    "radial": (radial, "6x6x7+3", {"masks": "token", "block": 16}),
    "freeswim": (freeswim, "2x11x12", {
        "masks": "token", "window_height": 5, "window_width": 3, "block": 16, "tile_height": 4,
    }),
}  # fmt: skip


@functools.cache
def case(name):
    rule, grid, changes = RULES[name]
    grid = TokenGrid.parse(grid)
    mask = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    pairs = itertools.product(places(grid), repeat=2)
    seen = torch.tensor([rule(grid, q, k) for q, k in pairs])
    mask[video, video] = seen.view(grid.video_tokens, -1)
    return mask, grid, PRESETS[name].override({"min_tokens": 0} | changes)


def inputs_of(grid, preset, **more):
    return Inputs(blocks=Blocks(grid, preset.policy.block, torch.device("cpu"), **more))


def call_of(grid):
    *_, last = Progress.first(10).steps()
    return Call(grid=grid, layer=0, step=9, progress=last, layers=1)


def dense(q, k, v):
    raise AssertionError("dense attention ran")


@pytest.mark.parametrize("name", RULES)
def test_attention_is_that_of_the_papers_rule_token_by_token(name):
    mask, grid, preset = case(name)
    assert 0.1 < float(mask.float().mean()) < 0.9
    sparse = SparseAttention(preset)
    q, k, v = (torch.randn(1, grid.tokens, 2, 16) for _ in "qkv")
    out = sparse(q, k, v, call_of(grid), dense)
    rows = [x.transpose(1, 2).double() for x in (q, k, v)]
    scores = (rows[0] @ rows[1].mT / 4).masked_fill(~mask, -torch.inf)
    exact = (scores.softmax(dim=-1) @ rows[2]).transpose(1, 2)
    assert float((out.double() - exact).abs().max()) < 1e-5
    assert not sparse.stats.fallbacks
    assert preset.policy.estimator.token_density(grid, 16) == pytest.approx(
        float(mask.double().mean()), abs=1e-6
    )


@pytest.mark.parametrize("name", RULES)
def test_on_the_way_from_dense_what_a_density_pays_for_is_whole(name):
    mask, grid, preset = case(name)
    inputs, planner = inputs_of(grid, preset), Planner(preset.policy)
    arranged = preset.policy.order.arrange(inputs).inputs.blocks
    order = torch.arange(grid.tokens) if arranged.order is None else arranged.order[0, 0].long()
    before = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    for way in (0.3, 0.6, 1.0):
        plan = validated(planner.static_plan(inputs, way))
        seen = plan.to_dense_mask()[0, 0]
        assert (seen | ~mask[order][:, order]).all()  # never less than the rule
        assert (before | ~seen).all()  # nor more than the step before
        before = seen
    assert torch.equal(before, mask[order][:, order])


def test_the_published_rules_are_exact_unless_a_density_chooses_blocks():
    for name in ("gna", "clear"):
        assert PRESETS[name].parameters()["masks"] == "token"
        assert "overlap" not in PRESETS[name].parameters()
        by_density = PRESETS[name].override({"density": 0.3})
        assert "masks" not in by_density.parameters()
        grid = TokenGrid(1, 20, 20)
        policy = by_density.policy
        inputs = Inputs(blocks=Blocks(grid, 16, torch.device("cpu")), density=0.3)
        assert Planner(policy).static_plan(inputs, 1.0).partial is None
    assert "overlap" in PRESETS["clear"].override({"masks": "block"}).parameters()
    assert PRESETS["radial"].parameters()["masks"] == "block"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("clear", {"overlap": 0.5}, "overlap does nothing in preset 'clear'.* no block is rounded"),
        ("clear", {"precision": "int8"}, "precision does nothing.* give masks=block"),
        ("clear", {"floor": 0.2}, "floor does nothing.* every row keeps what the rule says"),
        ("clear", {"density": 0.3, "masks": "token"}, "masks does nothing.* chooses whole blocks"),
        ("gna", {"rotate": 0.1}, "masks=token does not fit: rotate=0.1 opens whole blocks"),
        ("clear", {"compensation": "centroid"}, "the compensation is of whole blocks"),
        ("sta", {"masks": "token"}, "heads choose among masks of whole blocks"),
        ("clear", {"masks": "half"}, "masks takes block or token"),
    ],
)
def test_what_does_not_go_together_is_refused(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


def test_an_engine_that_cannot_is_refused_and_whole_blocks_are_for_any():
    _, grid, preset = case("clear")
    q, k, v = (torch.randn(1, grid.tokens, 1, 16) for _ in "qkv")
    with pytest.raises(BadInputError, match="computes whole blocks alone"):
        SparseAttention(preset, engine="xformers")(q, k, v, call_of(grid), dense)
    whole = Planner(preset.override({"masks": "block"}).policy)
    assert whole.static_plan(inputs_of(grid, preset), 1.0).partial is None


def test_an_anchor_is_whole_beside_the_rule():
    mask, grid, preset = case("radial")
    preset = preset.override({"anchor": "queries"})
    plan = Planner(preset.policy).static_plan(inputs_of(grid, preset), 1.0)
    expected = mask.clone()
    expected[: -(-grid.frame_tokens // 16) * 16] = True
    assert torch.equal(plan.to_dense_mask()[0, 0], expected)


def test_a_forecast_tells_computed_blocks_and_pairs_apart():
    preset = PRESETS["clear"].override({"radius": 4.0, "block": 64})
    found = forecast(preset, TokenGrid(1, 40, 40), layers=1, steps=10)
    assert found.token_density < 0.6 * found.block_density
    rows = torch.tensor([3, 4, 17])
    grid = TokenGrid(1, 40, 40)
    some, every = (
        preset.policy.estimator.estimate(
            preset.policy.order.arrange(inputs_of(grid, preset, only=only)).inputs
        ).exact
        for only in (rows, None)
    )
    assert some is not None
    assert every is not None
    assert torch.equal(some.to_block_mask()[:, :, rows], every.to_block_mask()[:, :, rows])
    assert int(some.kv_count.sum()) == int(every.kv_count[..., rows].sum())


def test_a_rule_that_fills_boxes_has_no_partial_block():
    grid = TokenGrid(4, 16, 16)
    changes = {f"{of}_{axis}": size for of in ("window", "stride") for axis, size in (
        ("frames", 2), ("height", 8), ("width", 8))}  # fmt: skip
    preset = PRESETS["gna"].override(changes)
    plan = Planner(preset.policy).static_plan(inputs_of(grid, preset), 1.0)
    assert plan.partial is None
    assert plan.density == preset.policy.estimator.token_density(grid, 128) == 1 / 8


def test_recall_counts_the_pairs_that_took_part():
    mask, grid, preset = case("clear")
    sparse, meter = SparseAttention(preset), ErrorMeter(rows=grid.tokens)
    sparse.observers.append(meter)
    q, k, v = (torch.randn(1, grid.tokens, 2, 16) for _ in "qkv")
    sparse(q, k, v, call_of(grid), dense)
    (error,) = meter.errors.values()
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 4).softmax(dim=-1)
    by_hand = (weights * mask).sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(error.recall, by_hand)
    assert by_hand.max() < 0.6  # and blocks would hold more
