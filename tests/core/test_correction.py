"""Correction: what every so-manyth exact row says of the output of any method."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.dial import mean_density
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.runs import agreement
from vidsparse.policies.correction import Delta
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(3, 7, 8, prefix=2, suffix=3)  # 168 tokens of video
CALL = Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.9))


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(engine, tensors, call) -> torch.Tensor:
    q, k, v = tensors
    return engine(q, k, v, call, dense)


def tokens(grid=GRID, heads=2):
    return [torch.randn(1, grid.tokens, heads, 8) for _ in range(3)]


def make(name="draft", engine="auto", **changes):
    settings: dict[str, Any] = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0, "block": 16}
    if PRESETS[name].policy.mean_density is not None:
        settings["density"] = 0.25
    if "block" not in PRESETS[name].parameters():
        del settings["block"]
    chosen = PRESETS[name].override(settings | changes)
    return SparseAttention(chosen, engine=engine, strict=True)


@pytest.mark.parametrize("at", ["first", "middle"])
def test_what_an_exact_row_gains_is_added_to_its_run(at):
    qkv = tokens()
    plain, engine = make(), make(correction="delta", exact_every=25, exact_at=at)
    sparse, exact = attend(plain, qkv, CALL), dense(*qkv)
    out = attend(engine, qkv, CALL)
    by_hand = sparse.clone()
    for start in range(2, 170, 25):
        stop = min(start + 25, 170)
        row = start if at == "first" else (start + stop) // 2
        by_hand[:, start:stop] += exact[:, row : row + 1] - sparse[:, row : row + 1]
        torch.testing.assert_close(out[:, row], exact[:, row], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, by_hand, atol=1e-5, rtol=1e-4)
    besides = engine.stats.mean_density - plain.stats.mean_density
    assert besides == pytest.approx(7 / GRID.tokens, abs=1e-6)


def test_what_all_rows_of_a_run_lack_alike_is_made_good():
    """Values that differ by run of keys alone, and queries that are one in a run of 16."""
    grid = TokenGrid(1, 8, 16)
    q = torch.randn(1, 8, 2, 8).repeat_interleave(16, dim=1)
    _, k, v = tokens(grid)
    call = dataclasses.replace(CALL, grid=grid)
    engine = make(correction="delta", exact_every=16, density=0.2)
    torch.testing.assert_close(engine(q, k, v, call, dense), dense(q, k, v), atol=1e-5, rtol=1e-4)
    assert engine.stats.mean_density < 0.4


@pytest.mark.parametrize(
    "name", ["semantic", "balanced", "psa", "svg", "lite", "rectified", "coreset"]
)
def test_any_method_can_be_corrected(name):
    """With clusters and stand-ins, boxes, means of tokens, orders of heads, and while observing."""
    grid = TokenGrid(4, 8, 8, suffix=3)
    qkv, call = tokens(grid), dataclasses.replace(CALL, grid=grid)
    changes: dict[str, Any] = {"margin": 0.0, "rotate": 0.0} if name == "lite" else {}
    plain = make(name, **changes)
    every = make(name, correction="delta", exact_every=1, **changes)
    some = make(name, correction="delta", exact_every=8, **changes)
    exact = dense(*qkv)
    for step in range(2):
        call = dataclasses.replace(call, step=step)
        sparse = attend(plain, qkv, call)
        video = attend(every, qkv, call)[:, : grid.video_tokens]
        torch.testing.assert_close(video, exact[:, : grid.video_tokens], atol=1e-5, rtol=1e-4)
        out = attend(some, qkv, call)
        same = (out - exact).abs().amax(dim=-1) < 1e-5
        least = math.ceil(grid.video_tokens / 8)
        assert (same[:, : grid.video_tokens].sum(dim=1) >= least).all()
        assert torch.equal(out[:, grid.video_tokens :], sparse[:, grid.video_tokens :])


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_a_query_that_is_no_number_corrects_nobody(kernel):
    qkv = tokens()
    plain, engine = make(engine=kernel), make(engine=kernel, correction="delta", exact_every=25)
    qkv[0][:, 27] = math.nan  # the exact row of the second run
    out, sparse = attend(engine, qkv, CALL), attend(plain, qkv, CALL)
    assert out[:, 27].isnan().all()
    assert torch.equal(out[:, 28:52], sparse[:, 28:52])
    assert out[:, 52:].isfinite().all()


def test_the_dial_pays_for_the_exact_rows():
    run = Progress.first(20)
    exact = {"correction": "delta", "exact_every": 64}
    preset = PRESETS["balanced"].override(exact | {"mean_density": 0.3})
    plain = PRESETS["balanced"].override({"correction": "none", "mean_density": 0.3})
    sparse_steps = sum(way > 0 for way in plain.schedule.ways(run))
    added = mean_density(preset, run, 0.2) - mean_density(plain, run, 0.2)
    assert added == pytest.approx(sparse_steps / 20 / 64)
    engine = SparseAttention(preset.override({"min_tokens": 0, "block": 16}), strict=True)
    grid = TokenGrid(4, 16, 16)
    qkv = tokens(grid)
    for step, progress in enumerate(run.steps()):
        attend(engine, qkv, dataclasses.replace(CALL, grid=grid, step=step, progress=progress))
    assert engine.stats.mean_density == pytest.approx(0.3, abs=0.003)


def test_the_window_of_delta_is_half_on_either_side_and_keeps_the_first_tokens(make_inputs):
    preset = PRESETS["delta"].override({"window": 64, "sinks": 20})
    inputs = make_inputs(TokenGrid(1, 10, 16), 16)
    policy = preset.policy
    mask = policy.plan(policy.estimator.estimate(inputs), inputs).to_block_mask()[0, 0]
    by_hand = [[abs(i - j) <= 2 or j < 2 for j in range(10)] for i in range(10)]
    assert mask.tolist() == by_hand
    assert policy.correction == Delta(exact_every=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_every": 0}, "exact_every must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1 token, got 0"),
        ({"sinks": -1}, "sinks must be at least 0 tokens, got -1"),
        ({"density": 0.2, "window": 64}, "window does nothing in preset 'delta'"),
    ],
)
def test_what_delta_refuses(changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS["delta"].override(changes)


def test_neighbours_gain_what_exact_rows_agree_on():
    qkv = tokens()
    changes: dict[str, Any] = {"correction": "delta", "exact_every": 8}
    plain, engine = make(), make(**changes, exact_gain="agreed")
    sparse, exact = attend(plain, qkv, CALL), dense(*qkv)
    out = attend(engine, qkv, CALL)
    rows = torch.arange(2, 170, 8)
    gained = (exact - sparse)[:, rows]
    first, second = gained[:, :-1], gained[:, 1:]
    alike = (first * second).sum((1, 3)) / ((first**2).sum((1, 3)) + (second**2).sum((1, 3))) * 2
    share = alike.clamp(min=0).sqrt()[:, None, :, None]
    by_hand = sparse.clone()
    by_hand[:, 2:170] += (share * gained).repeat_interleave(8, dim=1)
    by_hand[:, rows] = exact[:, rows]
    torch.testing.assert_close(out, by_hand, atol=1e-5, rtol=1e-4)
    assert 0 < share.max() < 1


def test_rows_that_err_each_its_own_way_are_left_alone():
    gained = torch.randn(1, 1, 2000, 4)
    assert agreement(gained).item() < 0.3
    assert agreement(gained[:, :, :1].expand(-1, -1, 5, -1)).item() == pytest.approx(1)
    assert agreement(torch.zeros(1, 1, 5, 4)).item() == 0


def test_an_output_that_was_moved_lies_as_the_model_reads_it():
    engine = make("balanced")
    out = attend(engine, tokens(), CALL)
    assert out.is_contiguous()  # so that no model copies it
