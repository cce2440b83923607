"""What holds for every preset, on every grid."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.validate import validated
from vidsparse.policies.observed import Observed
from vidsparse.presets import ALIASES, PRESETS, find_preset
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

SIGMAS = (0.97, 0.8, 0.6, 0.4, 0.2)
GRIDS = ["3+5x7x11+2", "1x13x13", "2x2x2", "1x1x1", "7x5x3+4"]


def preset(name, **changes):
    settings: dict[str, Any] = {"min_tokens": 0, "warmup": 0.1, "ramp_until": 0.5}
    settings["dense_layers"] = 0
    if PRESETS[name].policy.mean_density is not None:  # out of reach with so long a ramp
        settings["density"] = 0.25
    if "block" in PRESETS[name].parameters():
        settings["block"] = 16
    return PRESETS[name].override(settings | changes)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def qkv(grid, batch=1, heads=3):
    return [torch.randn(batch, grid.tokens, heads, 8) for _ in range(3)]


def attend(engine, tensors, call):
    q, k, v = tensors
    return engine(q, k, v, call, dense)


def run(engine, grid, tensors, sigmas=SIGMAS, **changes):
    call = Call(grid=grid, layer=1, step=0, progress=Progress.alone(0.5), **changes)
    return [
        attend(
            engine,
            tensors,
            dataclasses.replace(call, step=step, progress=Progress.alone(1 - sigma)),
        )
        for step, sigma in enumerate(sigmas)
    ]


def watched(engine) -> list[Any]:
    """The works of the engine, as they come."""
    works: list[Any] = []
    engine.observers.append(lambda call, work, *tensors: works.append(work))
    return works


def assert_agree(masks, rows, columns):
    """Two block masks are one in so many rows and columns, which hold no text after the video."""
    same, shared = (mask[..., :rows, :columns] for mask in masks)
    filled = same.any(dim=-1)  # without its text a row may be empty, and gets some block
    assert torch.equal(same[filled], shared[filled])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_gives_finite_attention_and_exact_text_rows(name, grid):
    grid = TokenGrid.parse(grid)
    engine = SparseAttention(preset(name), strict=True)
    q, k, v = qkv(grid)
    exact = dense(q, k, v)
    text = [*range(grid.prefix), *range(grid.prefix + grid.video_tokens, grid.tokens)]
    if name == "rectified":  # scales every row by an estimate, as published
        text = []
    for out in run(engine, grid, (q, k, v)):
        assert out.isfinite().all()
        torch.testing.assert_close(out[:, text], exact[:, text], atol=2e-5, rtol=1e-4)
    assert not engine.stats.fallbacks


LITE = ("lite", "lite-attention")
# a density of exactly one is the model's own attention
FULL = {name: {"margin": -1e6} for name in LITE} | {"twilight": {"p": 1.0, "shortlist": 1.0}}
P = ("svg2", "svg2-ear", "xattention", "rectified", "vmoba")


@pytest.mark.parametrize("name", PRESETS)
def test_at_full_density_every_order_is_dense_attention(name):
    grid = TokenGrid(4, 6, 7, 3, 2)
    changes = FULL.get(name, {"p": 1.0} if name in P else {"density": 1 - 1e-12})
    if name == "auto":
        changes = {"tolerance": 1e-6}
    engine = SparseAttention(preset(name, **changes), strict=True)
    tensors = qkv(grid, batch=2)
    for out in run(engine, grid, tensors):
        q, k, v = tensors
        torch.testing.assert_close(out, dense(q, k, v), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_runs_repeat_exactly_and_start_anew_with_a_generation(name):
    grid = TokenGrid(4, 6, 7)
    engine = SparseAttention(preset(name))
    tensors = qkv(grid)
    first = run(engine, grid, tensors)
    engine.start_generation()
    torch.rand(3)
    for one, other in zip(first, run(engine, grid, tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_guidance_branches_do_not_see_one_another(name):
    grid = TokenGrid(4, 6, 7)
    cond, uncond = qkv(grid), qkv(grid)
    alone = run(SparseAttention(preset(name)), grid, cond, branch="cond")
    engine = SparseAttention(preset(name))
    mixed = []
    for step, sigma in enumerate(SIGMAS):
        call = Call(grid=grid, layer=1, step=step, progress=Progress.alone(1 - sigma))
        mixed.append(attend(engine, cond, dataclasses.replace(call, branch="cond")))
        attend(engine, uncond, dataclasses.replace(call, branch="uncond"))
    for one, other in zip(alone, mixed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_branches_in_one_batch_are_the_branches_alone(name):
    grid = TokenGrid(4, 6, 7)
    halves = [qkv(grid), qkv(grid)]
    alone = [run(SparseAttention(preset(name)), grid, half) for half in halves]
    batch = [torch.cat(pair) for pair in zip(*halves, strict=True)]
    together = run(SparseAttention(preset(name)), grid, batch)
    for step, out in enumerate(together):
        for i in range(2):
            torch.testing.assert_close(out[i : i + 1], alone[i][step])


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_layer_remembers_is_what_its_shapes_say(name):
    grid = TokenGrid(4, 8, 9)
    chosen = preset(name)
    engine = SparseAttention(chosen)
    run(engine, grid, qkv(grid, batch=2))
    held, parked = (
        layer_state_bytes(chosen, grid, 3, 8, itemsize=4, batch=2, on_host=on_host)
        for on_host in (False, True)
    )
    assert engine._planner._states.nbytes() == sum(held)
    assert engine.stats.host_memory_bytes == sum(parked)


@pytest.mark.parametrize("name", PRESETS)
def test_a_video_of_wan_14b_remembers_less_than_200_mb(name):
    grid = TokenGrid(21, 45, 80)
    assert layer_state_bytes(PRESETS[name], grid, heads=40, head_dim=128).of_run(layers=40) < 200e6


@pytest.mark.parametrize("name", PRESETS)
def test_branches_in_turn_share_one_plan(name):
    chosen, grid = preset(name), TokenGrid(4, 6, 7)
    engine = SparseAttention(chosen)
    works = watched(engine)
    branches = {"cond": qkv(grid), "uncond": qkv(grid)}
    for step, sigma in enumerate(SIGMAS):
        for branch, tensors in branches.items():
            call = Call(
                grid=grid, layer=1, step=step, progress=Progress.alone(1 - sigma), branch=branch
            )
            attend(engine, tensors, call)
    pairs = list(zip(works[::2], works[1::2], strict=True))
    assert pairs
    same = [torch.equal(*(w.plan.to_block_mask() for w in pair)) for pair in pairs]
    orders = [a.q_order is b.q_order or torch.equal(a.q_order, b.q_order) for a, b in pairs]
    if chosen.policy.can_reuse_plans:
        assert all(same)
        assert all(orders)
    else:
        assert layer_state_bytes(chosen, grid, heads=3, head_dim=8).common == 0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("texts", [(3, 40), (20, 0)])
def test_branches_share_a_plan_where_their_texts_differ_in_length(name, texts):
    chosen = preset(name)
    engine = SparseAttention(chosen, strict=True)
    works = watched(engine)
    for step, sigma in enumerate(SIGMAS):
        for branch, text in zip(("cond", "uncond"), texts, strict=True):
            grid = TokenGrid(4, 6, 7, 0, text)
            tensors = qkv(grid)
            call = Call(
                grid=grid, layer=1, step=step, progress=Progress.alone(1 - sigma), branch=branch
            )
            out = attend(engine, tensors, call)
            assert out.isfinite().all()
            if name != "rectified":  # scales text rows too
                end = grid.video_tokens
                torch.testing.assert_close(
                    out[:, end:], dense(*tensors)[:, end:], atol=2e-5, rtol=1e-4
                )
    if not chosen.policy.can_reuse_plans or chosen.policy.static:
        return
    for one, other in zip(works[::2], works[1::2], strict=True):
        validated(one.plan)
        validated(other.plan)
        masks = [work.plan.to_block_mask() for work in (one, other)]
        rows, columns = (min(m.shape[dim] for m in masks) - 1 for dim in (-2, -1))
        if chosen.policy.order.static:
            rows = columns = (
                4 * 6 * 7 // (chosen.policy.block or 16)
            )  # the next block may hold text
        assert_agree(masks, rows, columns)


@pytest.mark.parametrize("name", ["semantic", "auto", "svg2"])
@pytest.mark.parametrize("suffixes", [(0, 0), (2, 9), (4, 0)])
def test_clusters_are_shared_where_texts_before_the_video_differ_in_length(name, suffixes):
    chosen = preset(name)
    engine = SparseAttention(chosen, strict=True)
    works = watched(engine)
    for step, sigma in enumerate(SIGMAS):
        for branch, prefix, suffix in zip(("cond", "uncond"), (3, 40), suffixes, strict=True):
            grid = TokenGrid(4, 6, 7, prefix, suffix)
            tensors = qkv(grid)
            call = Call(
                grid=grid, layer=1, step=step, progress=Progress.alone(1 - sigma), branch=branch
            )
            out, exact = attend(engine, tensors, call), dense(*tensors)
            for text in (slice(prefix), slice(prefix + grid.video_tokens, None)):
                torch.testing.assert_close(out[:, text], exact[:, text], atol=2e-5, rtol=1e-4)
    for one, other in zip(works[::2], works[1::2], strict=True):
        validated(other.plan)
        masks = [work.plan.to_block_mask()[..., 1:-1, 1:-1] for work in (one, other)]
        rows, columns = (min(m.shape[dim] for m in masks) for dim in (-2, -1))
        assert_agree(masks, rows, columns)
        assert torch.equal(one.q_order[..., 3:171] - 3, other.q_order[..., 40:208] - 40)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [4, 8])
def test_few_steps_and_a_late_start_follow_the_noise_level(name, steps):
    grid = TokenGrid(4, 6, 7)
    engine = SparseAttention(preset(name))
    late = [0.6 * (1 - i / steps) for i in range(steps)]  # image to video: noise starts at 0.6
    run(engine, grid, qkv(grid), late)
    densities = list(engine.stats.step_density.values())
    assert len(densities) == steps
    if PRESETS[name].policy.density is not None and name not in ("psa", "re-ttention"):
        assert engine.stats.dense_steps_share < 1


def test_aliases_name_presets():
    assert {find_preset(alias).name for alias in ALIASES} <= PRESETS.keys()


def test_lite_only_drops_blocks_until_rotation_shows_them_again():
    grid = TokenGrid(4, 8, 8)
    q, k, v = qkv(grid)
    monotone = SparseAttention(preset("lite", rotate=0.0, margin=-1.0, ramp_until=0.1))
    run(monotone, grid, (4 * q, 4 * k, v), (0.5,) * 6)
    falling = list(monotone.stats.step_density.values())
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0.9
    run(monotone, grid, (4 * k, 4 * q, v), (0.4,))  # what matters has changed: it stays blind
    assert monotone.stats.step_density[0] <= falling[-1]
    reopening = SparseAttention(preset("lite", rotate=0.25, margin=-1.0, ramp_until=0.1))
    run(reopening, grid, (4 * q, 4 * k, v), (0.5,) * 6)
    state = next(iter(reopening._planner._states._values.values()))
    seen = set()
    for step in range(6, 14):
        call = Call(grid=grid, layer=1, step=step, progress=Progress.alone(0.5))
        reopening(4 * k, 4 * q, v, call, dense)
        seen.add(bytes(state.get("tiles").numpy().tobytes()))
    assert len(seen) > 1
    assert isinstance(reopening.preset.policy.estimator, Observed)


def test_lite_first_looks_at_the_last_dense_step_where_the_run_tells_which_that_is():
    grid = TokenGrid(4, 8, 8)
    q, k, v = qkv(grid)
    known = Progress((0.0, 0.05, 0.15, 0.6, 1.0), 0)
    told, untold = (SparseAttention(preset("lite", margin=-1.0)) for _ in range(2))
    for step, progress in enumerate(known.steps()):
        call = Call(grid=grid, layer=1, step=step, progress=Progress.alone(progress.before))
        untold(4 * q, 4 * k, v, call, dense)
        out = told(4 * q, 4 * k, v, dataclasses.replace(call, progress=progress), dense)
        if step == 1:
            torch.testing.assert_close(out, dense(4 * q, 4 * k, v), atol=1e-5, rtol=1e-4)
    assert told.stats.dense_steps_share == 0.5
    dense_steps = [
        [step for step, density in engine.stats.step_density.items() if density == 1]
        for engine in (told, untold)
    ]
    assert dense_steps == [[0, 1], [0, 1, 2]]


def test_visits_of_lite_start_at_the_diagonal_and_go_round():
    plan = BlockPlan.from_mask(
        torch.tensor([[[[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1]]]]).bool(),
        q_len=64, kv_len=64, q_block=16, kv_block=16,
    )  # fmt: skip
    visits = Observed().visits(plan)
    rows = zip(visits.kv_index[0, 0].tolist(), visits.kv_count[0, 0].tolist(), strict=True)
    assert [row[:count] for row, count in rows] == [[0, 1, 3], [1, 3, 0], [2, 0], [3, 0]]


@pytest.mark.parametrize("name", PRESETS)
def test_calls_that_a_cache_skips_are_not_missed(name):
    """FirstBlockCache and its like leave out layers at some steps, or a whole guidance branch."""
    grid = TokenGrid(4, 6, 7, 2)
    chosen = preset(name)
    if "replan" in chosen.parameters():
        chosen = chosen.override({"replan": 3})
    engine = SparseAttention(chosen, strict=True)
    tensors = {"cond": qkv(grid), "uncond": qkv(grid)}
    calls = [(0, "cond"), (0, "uncond"), (1, "cond"), (4, "uncond"), (9, "cond"), (10, "uncond")]
    for step, branch in calls:
        call = Call(
            grid=grid,
            layer=0,
            step=step,
            progress=Progress.alone(1 - (0.8 - step / 20)),
            branch=branch,
        )
        out = attend(engine, tensors[branch], call)
        assert out.isfinite().all()
        if name != "rectified":  # scales text rows too
            torch.testing.assert_close(
                out[:, :2], dense(*tensors[branch])[:, :2], atol=2e-5, rtol=1e-4
            )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_a_query_that_is_no_number_stays_so_and_changes_no_other(name, kernel):
    """For planning it counts as zero; the kernel gets it as it is."""
    grid, at = TokenGrid(4, 6, 7, 2, 3), 40
    chosen = preset(name, **({"rotate": 0.1} if name in LITE else {}))
    broken, zero = (SparseAttention(chosen, engine=kernel, strict=True) for _ in range(2))
    for step, sigma in enumerate((0.8, 0.5, 0.4, 0.2)):
        q, k, v = qkv(grid, batch=2)
        q[0, at, 1] = 0.0
        call = Call(grid=grid, layer=1, step=step, progress=Progress.alone(1 - sigma))
        expected = attend(zero, (q, k, v), call)
        q[0, at, 1] = math.nan
        out = attend(broken, (q, k, v), call)
        assert out[0, at, 1].isnan().all()
        out[0, at, 1] = expected[0, at, 1]
        assert torch.equal(out, expected), step
