"""Devices without float64, such as Apple's: whatever an attention call makes, it makes without."""

import importlib
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.select import ROUNDING, affordable_pairs
from vidsparse.metrics.attention import sample_rows
from vidsparse.pipelines.grid_readers import cosmos_noise
from vidsparse.policies.selectors import best_of_map
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 8, 16, prefix=2, suffix=5)
op = importlib.import_module("vidsparse.kernels.op")
OURS = {"vidsparse::attend": op._attend, "vidsparse::attend_backward": op._attend_backward}


class NoFloat64(TorchDispatchMode):
    """Every tensor that is made is one that a device without float64 can hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        ours = OURS.get(func.name())
        if ours is not None:  # look inside
            with self:
                return ours._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            assert not isinstance(x, torch.Tensor) or x.dtype != torch.float64, f"{func} of float64"
        return out


def preset(name):
    changes = {"block": 16, "min_tokens": 0, "warmup": 0.1, "ramp_until": 0.5}
    changes["dense_layers"] = 0
    if PRESETS[name].policy.mean_density is not None:  # out of reach with so long a ramp
        changes["density"] = 0.25
    if "block" not in PRESETS[name].parameters():  # clusters have sizes of their own
        del changes["block"]
    return PRESETS[name].override(changes)


def never(q, k, v):
    raise AssertionError("no call here is dense")


def test_the_guard_looks_inside_our_op():
    with pytest.raises(AssertionError, match="of float64"), NoFloat64():
        torch.zeros(2).double()
    engine = SparseAttention(preset("draft"))
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8).double() for _ in range(3))
    call = Call(grid=GRID, layer=0, step=1, progress=Progress.alone(0.6))
    with pytest.raises(AssertionError, match="of float64"), NoFloat64():
        engine(q, k, v, call, never)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_plans_and_attends_without_float64(name, kernels):
    engine = SparseAttention(preset(name), engine=kernels)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    out = torch.full((1,), torch.nan)
    with NoFloat64():  # on the ramp, at full sparsity, and with what was kept of the step before
        for step, sigma in enumerate((0.7, 0.4, 0.3)):
            call = Call(grid=GRID, layer=0, step=step, progress=Progress.alone(1 - sigma))
            out = engine(q, k, v, call, never)
    assert out.isfinite().all()


@pytest.mark.parametrize("tokens", [1_000, 75_600, 1_000_000])
@pytest.mark.parametrize("density", [0.05, 0.2, 1 / 3, 0.7, 1.0])
def test_budgets_are_exact_for_as_many_pairs_as_there_may_be(tokens, density):
    pairs = torch.tensor([tokens**2, 40 * tokens**2])
    with NoFloat64():
        got = affordable_pairs(pairs, density).tolist()
        narrow = torch.tensor(density)
        of_tensor = affordable_pairs(pairs, narrow).tolist()
    for density_used, paid in ((density, got), (float(narrow), of_tensor)):
        for number, whole in zip(paid, pairs.tolist(), strict=True):
            exact = Fraction(density_used) * whole
            most = exact * Fraction(1 + 2 * ROUNDING) + whole * Fraction(1, 2**31)
            assert int(exact) <= number <= most


def test_the_best_blocks_of_a_map_cost_what_a_density_pays_for():
    """A million tokens: float32 would lose blocks at the end of the sum."""
    number, block = 244, 4_096
    sizes = torch.full((number,), float(block))
    sizes[-1] = 1_000_000 - block * (number - 1)
    scores = torch.rand(1, 1, number, number)
    never = torch.zeros(1, 1, number, number, dtype=torch.bool)
    with NoFloat64():
        keep = best_of_map(scores, never, sizes, 0.3)[0, 0]
    cost = sizes[:, None].long() * sizes.long()
    spent, budget = int(cost[keep].sum()), 0.3 * 1_000_000**2
    assert budget - int(cost.max()) < spent <= budget


class Elsewhere(torch.Tensor):
    """A tensor of a device that has no float64: it can only be brought to the host."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        out = super().__torch_function__(func, types, args, kwargs)
        assert not isinstance(out, Elsewhere) or out.dtype != torch.float64, f"{func} of float64"
        return out


@pytest.mark.parametrize("shape", [(), (2,), (1, 1, 3, 1, 1)])
def test_a_noise_level_comes_to_the_host_before_it_is_made_exact(shape):
    level = torch.rand(shape)
    config = SimpleNamespace(extra_pos_embed_type="learnable")
    expected = (4 * (level[:, :, -1] if len(shape) == 5 else level).double()).sigmoid()
    assert torch.equal(cosmos_noise(config, level.as_subclass(Elsewhere)), expected)


def test_sampled_rows_are_spread_on_the_host():
    rows = sample_rows(10, 4, "meta")  # a device that could not do it
    assert rows.shape == (4,)
    assert rows.dtype == torch.int64
