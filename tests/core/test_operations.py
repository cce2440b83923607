"""What a sparse call asks of torch: what follows from the geometry alone is made once."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID, OTHER = TokenGrid(3, 6, 8, suffix=5), TokenGrid(2, 8, 8)
ANEW = 25  # operations at least that the geometry takes where nothing is kept


class Operations(TorchDispatchMode):
    """Counts what torch is asked for, by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def session(preset="balanced", **parameters):
    parameters = {"warmup": 0.0, "ramp_until": 0.0, "min_tokens": 0, "block": 16} | parameters
    return SparseAttention(PRESETS[preset].override(parameters), engine="reference", strict=True)


def attend(attention, grid=GRID, step=0, branch="cond", trains=False):
    generator = torch.Generator().manual_seed(step)
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 16, generator=generator)
    if trains:
        q.requires_grad_()
    progress = list(Progress.first(8).steps())[step]
    call = Call(grid=grid, layer=0, step=step, branch=branch, progress=progress, layers=4)
    return attention(q, k, v, call, lambda q, k, v: pytest.fail("dense attention ran")), q


def operations(attention, **call):
    with Operations() as seen:
        attend(attention, **call)
    return seen.names


@pytest.mark.parametrize(("preset", "most"), [("balanced", 235), ("draft", 100)])
def test_a_later_call_makes_few_operations(preset, most):
    attention = session(preset)
    first = operations(attention)
    later = operations(attention, step=1)
    assert later.total() <= most, later
    assert later.total() <= first.total() - ANEW


def test_geometries_take_turns():
    alone = [attend(session(), grid=grid)[0] for grid in (GRID, OTHER)]
    attention = session()
    for _ in range(2):
        for grid, out in zip((GRID, OTHER), alone, strict=True):
            assert torch.equal(attend(attention, grid=grid)[0], out)


def test_what_is_kept_in_inference_mode_serves_a_call_with_gradients():
    out, q = attend(session(), trains=True)
    expected = torch.autograd.grad(out.square().sum(), q)[0]
    attention = session()
    with torch.inference_mode():
        attend(attention)
    out, q = attend(attention, trains=True)
    assert torch.equal(torch.autograd.grad(out.square().sum(), q)[0], expected)


def test_what_is_kept_is_counted_and_only_of_a_few_geometries():
    attention = session("draft")
    attend(attention)
    blocks = -(-GRID.tokens // 16)
    kept = attention._planner.geometry_nbytes()
    assert kept >= blocks**2  # what is always kept, a byte a pair of blocks
    for prefix in range(1, 12):
        attend(attention, grid=TokenGrid(3, 6, 8, prefix=prefix))
    assert attention._planner.geometry_nbytes() < 6 * kept
