"""Compensation: what stands in for blocks that are skipped."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.compensation import worth_it
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 16, 16)
CALL = Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.5))


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def tokens(repeat=1, heads=2):
    """Each token ``repeat`` times in a row."""
    x = torch.randn(1, GRID.tokens // repeat, heads, 8)
    return x.repeat_interleave(repeat, dim=1)


def make(name, **changes):
    settings = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0}
    if name == "residual":  # of a draft, every fifth step
        name, changes = "draft", {"compensation": "residual", "replan": 5} | changes
    return SparseAttention(PRESETS[name].override(settings | changes), strict=True)


def test_levels_are_exact_where_the_tokens_of_a_mean_are_equal():
    q, k, v = tokens(), tokens(8), tokens(8)
    changes = {"order": "raster", "density": 0.25, "level2": 0.25, "level4": 0.25, "level8": 0.25}
    engine = make("psa", **changes)
    torch.testing.assert_close(engine(q, k, v, CALL, dense), dense(q, k, v), atol=1e-5, rtol=1e-4)
    expected = 0.25 * (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert engine.stats.mean_density == pytest.approx(expected, abs=0.08)
    without = make("draft", density=0.25, block=128)
    assert not torch.allclose(without(q, k, v, CALL, dense), dense(q, k, v), atol=1e-2)


def test_levels_take_the_best_blocks_first():
    engine = make("psa", order="raster", density=0.13, level2=0.12, level8=0.25)
    inputs = engine._inputs(tokens(), tokens(), tokens(), CALL)
    work = engine._planner.work(inputs, 1.0)
    (two, plan_two), (eight, plan_eight) = work.levels
    assert (two, eight) == (2, 8)
    masks = [plan.to_block_mask() for plan in (work.plan, plan_two, plan_eight)]
    assert not (masks[0] & masks[1]).any()
    assert not ((masks[0] | masks[1]) & masks[2]).any()
    scores = engine.preset.policy.estimator.estimate(inputs).scores
    always = engine.preset.policy.always(inputs)
    ranked = scores.masked_fill(always, math.inf)
    lowest = [ranked.masked_fill(~mask, math.inf).amin(dim=-1) for mask in masks]
    highest = [ranked.masked_fill(~mask, -math.inf).amax(dim=-1) for mask in masks]
    assert (lowest[0] >= highest[1]).all()
    assert (lowest[1] >= highest[2]).all()


def plain_density(plain, q, k, v):
    plain(q, k, v, CALL, dense)
    return plain.stats.mean_density


@pytest.mark.parametrize("age", [2, 24])
def test_a_residual_is_of_every_token_and_gives_way_to_the_sparse_output(age):
    q, k, v = tokens(), tokens(), tokens()
    engine = make("residual", density=0.2, replan=30)
    exact = engine(q, k, v, CALL, dense)
    out = engine(q, k, v, dataclasses.replace(CALL, step=age), dense)
    plan = engine._planner.work(engine._inputs(q, k, v, CALL), 1.0).plan
    keep = plan.to_block_mask().repeat_interleave(64, 2).repeat_interleave(64, 3)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(8)
    kept = scores.masked_fill(~keep, -math.inf)
    sparse = (kept.softmax(dim=-1) @ v).transpose(1, 2)
    first = (kept.logsumexp(-1) - scores.logsumexp(-1)).exp().transpose(1, 2)[..., None]
    now = (first + age * 0.04).clamp(max=1)
    left = (1 - now) / (1 - first)  # of what the skipped keys gave
    by_hand = sparse * now + (exact - sparse * first) * left
    torch.testing.assert_close(out, by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("age", [0, 1, 2, 3, 12, 29])
def test_where_all_tokens_are_equal_a_residual_leaves_them_so(age, dtype):
    """The weights of a row sum to one, whatever the age of the residual."""
    q, k, v = (x[:, :1].expand(-1, GRID.tokens, -1, -1).to(dtype) for x in map(tokens, (1, 1, 1)))
    engine = make("residual", replan=30)
    for step in {0, age}:
        out = engine(q, k, v, dataclasses.replace(CALL, step=step), dense)
        torch.testing.assert_close(out, v, rtol=1e-4 if dtype is torch.float32 else 0.016, atol=0)


def test_a_residual_of_a_plan_that_skips_nothing_is_nothing():
    q, k, v = tokens(), tokens(), tokens()
    engine = make("residual", density=1 - 1e-12)
    for step in range(3):
        out = engine(q, k, v, dataclasses.replace(CALL, step=step), dense)
        torch.testing.assert_close(out, dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_a_residual_makes_the_planning_step_dense_and_later_steps_better():
    q, k, v = tokens(), tokens(), tokens()
    plain, engine = make("draft", density=0.2), make("residual", density=0.2, replan=4)
    exact = dense(q, k, v)
    torch.testing.assert_close(engine(q, k, v, CALL, dense), exact, atol=1e-5, rtol=1e-4)
    assert engine.stats.mean_density == 1 + plain_density(plain, q, k, v)  # both have run
    later = dataclasses.replace(CALL, step=1)
    with_it = (engine(q, k, v, later, dense) - exact).norm()
    assert with_it < 0.8 * (plain(q, k, v, CALL, dense) - exact).norm()
    for step in (2, 3):
        engine(q, k, v, dataclasses.replace(CALL, step=step), dense)
        assert engine.stats.step_density[step] < 0.3
    refreshed = engine(q, k, v, dataclasses.replace(CALL, step=4), dense)
    torch.testing.assert_close(refreshed, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
def test_each_branch_measures_the_residual_of_the_plan_it_runs(static):
    changes = {"estimator": "band", "selector": "threshold"} if static else {}
    engine = make("residual", density=0.2, replan=3, **changes)
    for step in range(6):
        q, k, v = tokens(), tokens(), tokens()  # what changes calls for other plans
        for branch in ("cond", "uncond"):
            call = dataclasses.replace(CALL, step=step, branch=branch)
            error = (engine(q, k, v, call, dense) - dense(q, k, v)).abs().max()
            assert (error < 1e-5) == (step in (0, 3))
    found = [1 + 0.2 if step in (0, 3) else 0.2 for step in range(6)]
    assert list(engine.stats.step_density.values()) == pytest.approx(found, abs=0.1)


def test_a_ramp_whose_plans_change_has_no_residual():
    q, k, v = tokens(), tokens(), tokens()
    changes = {"density": 0.2, "warmup": 0.1, "ramp_until": 0.5}
    engine, plain = make("residual", **changes), make("draft", **changes)
    for step, sigma in enumerate((0.8, 0.6)):
        call = dataclasses.replace(CALL, step=step, progress=Progress.alone(1 - sigma))
        assert torch.equal(engine(q, k, v, call, dense), plain(q, k, v, call, dense))
    full = dataclasses.replace(CALL, step=2, progress=Progress.alone(0.5))
    torch.testing.assert_close(engine(q, k, v, full, dense), dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_the_gate_of_rectified_asks_for_more_gain_than_error(make_inputs):
    grid = TokenGrid(1, 4, 8)
    q = torch.tensor([3.0, 0.0]).expand(1, 1, 32, 2).clone()
    k = q.clone()
    k[:, :, 16:] = torch.tensor([0.0, 3.0])
    v = torch.randn(1, 1, 32, 2)
    gate = worth_it(make_inputs(grid, 16, q=q, k=k, v=v))[0, 0]
    assert gate.tolist() == [[True, False], [True, False]]  # no spread: any product is a gain
    spread = q + 2.0 * torch.randn_like(q)
    assert not worth_it(make_inputs(grid, 16, q=spread, k=k.roll(1, -1), v=v)).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("psa", {"block": 64}, "compensation=levels takes selector=top_k and block=128"),
        ("psa", {"level8": 2}, r"level8 must be in \[0, 1\], got 2"),
        ("lite", {"compensation": "centroid"}, "at most 128 tokens and no compensation"),
        ("lite", {"density": 0.3}, "this preset has no density: change its margin"),
        ("svg2", {"compensation": "residual"}, "clusters, not equal blocks"),
        ("lite", {"replan": 2}, "cannot use plans again"),
        ("draft", {"compensation": "residual"}, "give replan, of 2 steps at least"),
        ("auto", {"compensation": "rescale"}, "tolerance measures compensation none or"),
        ("radial", {"order": "tile"}, "order=raster"),
        ("draft", {"order": "tiles"}, "unknown order 'tiles': did you mean tile"),
        ("draft", {"estimator": "pool"}, "unknown estimator 'pool': did you mean pooled"),
    ],
)
def test_parts_that_do_not_go_together_are_named(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        make(name, **changes)
