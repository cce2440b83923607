"""Under autocast every preset does what it does with q, k and v in autocast's dtype."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 8, 16, prefix=2, suffix=5)
CALLS = [
    Call(grid=GRID, layer=0, step=s, progress=Progress.alone(1 - sigma))
    for s, sigma in enumerate((0.7, 0.4, 0.3))
]


def preset(name):
    changes = {"block": 16, "min_tokens": 0, "warmup": 0.1, "ramp_until": 0.5}
    changes["dense_layers"] = 0
    if PRESETS[name].policy.mean_density is not None:  # out of reach with so long a ramp
        changes["density"] = 0.25
    if "block" not in PRESETS[name].parameters():  # clusters have sizes of their own
        del changes["block"]
    return PRESETS[name].override(changes)


def qkv(dtypes, device):
    torch.manual_seed(0)
    drawn = [torch.randn(1, GRID.tokens, 2, 16).to(device, torch.bfloat16) for _ in range(3)]
    return [x.to(dtype) for x, dtype in zip(drawn, dtypes, strict=True)]


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def run(name, tensors):
    """On the ramp, at full sparsity, and with what was kept of the step before."""
    engine = SparseAttention(preset(name))
    q, k, v = tensors
    outs = [engine(q, k, v, call, dense) for call in CALLS]
    assert not engine.stats.fallbacks
    return torch.stack(outs), engine.stats


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,) * 3, (torch.float32, torch.float32, torch.bfloat16)],
    ids=["bf16", "q and k in float32"],
)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_does_the_same_under_autocast(name, dtypes, device):
    expected, counted = run(name, qkv((torch.bfloat16,) * 3, device))
    with torch.autocast(device, torch.bfloat16):
        out, stats = run(name, qkv(dtypes, device))
    assert out.dtype == torch.bfloat16
    assert stats.mean_density == pytest.approx(counted.mean_density, abs=1e-3)
    tolerance = 0.0 if device == "cpu" else 0.02  # a GPU may sum in another order
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def test_float64_stays_as_it_does_in_torchs_attention(device):
    q, k, v = qkv((torch.float64,) * 3, device)
    with torch.autocast(device, torch.bfloat16):
        out, _ = run("draft", (q, k, v))
        assert out.dtype == dense(q, k, v).dtype == torch.float64


def test_a_dense_call_is_the_models_own_under_autocast(device):
    engine = SparseAttention(preset("draft"))
    q, k, v = qkv((torch.float32, torch.float32, torch.bfloat16), device)
    with torch.autocast(device, torch.bfloat16):
        out = engine(q, k, v, dataclasses.replace(CALLS[0], progress=Progress.alone(0.01)), dense)
        assert torch.equal(out, dense(q, k, v))


def test_observers_see_what_was_attended_to_with_autocast_off(device):
    engine, seen = SparseAttention(preset("draft")), []
    engine.observers.append(
        lambda call, work, *tensors: seen.append((tensors, torch.is_autocast_enabled(device)))
    )
    q, k, v = qkv((torch.float32,) * 3, device)
    with torch.autocast(device, torch.bfloat16):
        engine(q, k, v, CALLS[1], dense)
        assert torch.is_autocast_enabled(device)
    (tensors, enabled) = seen[0]
    assert {x.dtype for x in tensors} == {torch.bfloat16}
    assert not enabled
