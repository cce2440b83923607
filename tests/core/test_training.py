"""Gradients of one attention call: right, of one plan, and nothing of planning is kept."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.training import Take

GRID = TokenGrid(4, 8, 16, prefix=2, suffix=5)
CALL = Call(grid=GRID, layer=0, step=1, progress=Progress.alone(0.7))
EARLIER = dataclasses.replace(CALL, step=0, progress=Progress.alone(0.5))
LITE = ("lite", "lite-attention")
REFUSED = dict.fromkeys(LITE, "the blocks that mattered") | {"re-ttention": "a residual"}
TRAINABLE = [name for name in PRESETS if name not in REFUSED]


def engine(name):
    changes = {"block": 16, "min_tokens": 0, "warmup": 0.1, "ramp_until": 0.6}
    changes["dense_layers"] = 0
    if PRESETS[name].policy.mean_density is not None:  # out of reach with so long a ramp
        changes["density"] = 0.25
    if "block" not in PRESETS[name].parameters():  # clusters have sizes of their own
        del changes["block"]
    return SparseAttention(PRESETS[name].override(changes))


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(attention, qkv, call, take=None) -> torch.Tensor:
    q, k, v = qkv
    return attention(q, k, v, call, dense, take)


def leaves(**options) -> Any:
    return [torch.randn(1, GRID.tokens, 2, 8, **options).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_are_the_slope_of_the_output_under_one_plan(name):
    """Along a direction, the difference of two outputs over their distance."""
    attention, take, qkv = engine(name), Take(), leaves(dtype=torch.float64)
    with torch.no_grad():  # exact rows agree: where they hardly do, the root of that has a kink
        qkv[2] += 10 * torch.linspace(-1, 1, GRID.tokens)[:, None, None]
    first = attend(attention, qkv, CALL, take)
    weight = torch.randn_like(first)
    (first * weight).sum().backward()
    direction = [torch.randn_like(x) for x in qkv]
    slope = sum((x.grad * d).sum() for x, d in zip(qkv, direction, strict=True))
    step, sides = 1e-3, []
    with torch.no_grad():
        for sign in (1, -1):
            moved = [x + sign * step * d for x, d in zip(qkv, direction, strict=True)]
            sides.append((attend(attention, moved, CALL, take) * weight).sum())
    assert float(slope) == pytest.approx(float(sides[0] - sides[1]) / (2 * step), rel=2e-3)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_take_makes_the_call_what_it_was(name):
    """Whatever the engine has learned since, and uncounted."""
    attention, take, qkv = engine(name), Take(), leaves()
    first = attend(attention, qkv, EARLIER, take)
    attend(attention, leaves(), CALL)
    counted = dict(attention.stats.engines), attention.stats.mean_density
    again = attend(attention, qkv, EARLIER, take)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert counted == (dict(attention.stats.engines), attention.stats.mean_density)
    assert attention.stats.attention_seconds > 0


def test_a_take_of_a_dense_call_is_dense():
    attention, take, qkv = engine("draft"), Take(), leaves()
    early = dataclasses.replace(CALL, progress=Progress.alone(0.05))
    first = attend(attention, qkv, early, take)
    assert torch.equal(attend(attention, qkv, CALL, take), first)


@pytest.mark.parametrize("name", TRAINABLE)
def test_planning_keeps_nothing_for_the_backward_pass(name):
    """What is saved is what the attention of the plan itself saves, as a replay shows."""
    attention, take, qkv = engine(name), Take(), leaves()

    def saved():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.nbytes), lambda x: x
        ):
            attend(attention, qkv, CALL, take)
        return sorted(sizes)

    first = saved()
    assert take.work is not None
    assert first == saved()
    assert not any(x.requires_grad for x in tensors_of(attention._planner))


def tensors_of(planner):
    for memory in (planner._plans, planner._estimates):
        for value in memory._values.values():
            yield from (x for x in vars(value).values() if isinstance(x, torch.Tensor))
    for state in planner._states._values.values():
        yield from state.tensors.values()


@pytest.mark.parametrize("name", ["adaspa", "semantic", "paro", "balanced"])
def test_a_call_with_gradients_leaves_nothing_and_takes_nothing(name):
    attention, qkv = engine(name), leaves()
    alone = attend(engine(name), qkv, CALL)
    with torch.no_grad():
        attend(attention, leaves(), EARLIER)
        attend(attention, leaves(), CALL)
    bytes_before = attention._planner.nbytes(), attention._planner.host_nbytes()
    torch.testing.assert_close(attend(attention, qkv, CALL), alone, rtol=0, atol=0)
    assert (attention._planner.nbytes(), attention._planner.host_nbytes()) == bytes_before


def test_a_call_that_trains_does_so_before_gradients_are_recorded():
    """As the first pass of a reentrant checkpoint."""
    attention, take, qkv = engine("adaspa"), Take(), leaves()
    with torch.no_grad():
        attend(attention, leaves(), EARLIER)
        first = attend(attention, qkv, dataclasses.replace(CALL, trains=True), take)
    again = attend(attention, qkv, CALL, take)
    torch.testing.assert_close(first, again)  # which is by another formula, with its log-sum-exp
    assert again.requires_grad
    assert torch.equal(again, attend(engine("adaspa"), qkv, CALL))


@pytest.mark.parametrize("sigma", [0.3, 0.95])
@pytest.mark.parametrize("name", REFUSED)
def test_what_lives_on_earlier_steps_is_refused(name, sigma):
    attention, call = engine(name), dataclasses.replace(CALL, progress=Progress.alone(1 - sigma))
    with pytest.raises(BadInputError, match=f"preset '{name}' keeps {REFUSED[name]} from one"):
        attend(attention, leaves(), call)
    with torch.no_grad():
        assert attend(attention, leaves(), call).isfinite().all()
