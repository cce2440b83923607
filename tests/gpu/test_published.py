"""Methods as published do on a GPU what they do on a CPU, on a grid that no box divides."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

pytestmark = pytest.mark.gpu

NAMES = (
    "draft-attention", "lite-attention", "adaspa", "sparsed", "paro", "vmoba", "twilight", "gna",
    "clear", "sparse-vdit", "rainfusion", "re-ttention", "psa", "svg",
    "vorta",
)  # fmt: skip
GRID = TokenGrid(5, 11, 33, 3, 21)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def outputs(name, device, engine):
    """Of three steps at full sparsity; of a method whose layers differ, of three layers."""
    settings = {"min_tokens": 0, "dense_layers": 0, "warmup": 0.0, "ramp_until": 0.0}
    if "block" in PRESETS[name].parameters() and name != "psa":
        settings["block"] = 64  # what a CPU and a GPU take otherwise may differ
    attention = SparseAttention(PRESETS[name].override(settings), engine=engine, strict=True)
    draw, made = torch.Generator().manual_seed(0), []
    for step in range(3):
        for layer in range(3 if name == "vmoba" else 1):
            q, k, v = (torch.randn(1, GRID.tokens, 2, 64, generator=draw) for _ in range(3))
            call = Call(grid=GRID, layer=layer, step=step, progress=Progress.alone(0.5))
            q, k, v = (x.to(device) for x in (2 * q, k, v))
            made.append(attention(q, k, v, call, dense).cpu())
    return torch.stack(made), attention.stats.mean_density


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_does_what_a_cpu_does(name):
    expected, density = outputs(name, "cpu", "cpu")
    found, on_gpu = outputs(name, "cuda", "auto")
    assert on_gpu == pytest.approx(density, abs=0.02)  # near ties may fall the other way
    far = ((found - expected).abs() > 0.02).float().mean()
    assert float(far) < 0.02
