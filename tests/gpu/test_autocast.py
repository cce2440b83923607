"""Autocast around every preset's own blocks and kernels; on a GPU those of Triton."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 16, 16, suffix=9)
CALL = Call(grid=GRID, layer=0, step=1, progress=Progress.alone(0.7))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def attend(name, tensors, dtypes):
    q, k, v = (x.to(dtype) for x, dtype in zip(tensors, dtypes, strict=True))
    engine = SparseAttention(PRESETS[name].override({"min_tokens": 0}))
    return engine(q, k, v, CALL, F.scaled_dot_product_attention)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("where", DEVICES)
def test_a_preset_does_the_same_under_autocast(where, name):
    drawn = torch.randn(3, 1, GRID.tokens, 2, 64).to(where, torch.bfloat16)
    expected = attend(name, drawn, (torch.bfloat16,) * 3)
    with torch.autocast(where, torch.bfloat16):
        mixed = attend(name, drawn, (torch.float32, torch.float32, torch.bfloat16))
        plain = attend(name, drawn, (torch.bfloat16,) * 3)
    for out in (mixed, plain):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
