"""Block means: one program reads one block once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _pool(
    x_ptr, y_ptr, x_b, x_h, x_s, x_d, heads, seq,
    D: tl.constexpr, BD: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    dims = tl.arange(0, BD)
    for part in tl.static_range(PARTS):
        start = (block * PARTS + part) * SIZE
        end = tl.minimum(start + SIZE, seq)
        total = tl.zeros([BD], tl.float32)
        for first in tl.range(0, SIZE, ROWS):
            token = start + first + tl.arange(0, ROWS)
            at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
            mask = (token < end)[:, None] & (dims < D)[None, :]
            total += tl.sum(tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32), 0)
        mean = total / tl.maximum(end - start, 1).to(tl.float32)
        to = ((bh.to(tl.int64) * tl.num_programs(0) + block) * PARTS + part) * D + dims
        tl.store(y_ptr + to, mean.to(y_ptr.dtype.element_ty), mask=dims < D)


def launch(x: Tensor, block: int, parts: int, dtype: torch.dtype) -> Tensor:
    """Run the kernel; see ``pool_blocks``."""
    batch, heads, seq, head_dim = x.shape
    blocks, wide = triton.cdiv(seq, block), triton.next_power_of_2(head_dim)
    y = torch.empty((batch, heads, blocks, parts, head_dim), dtype=dtype, device=x.device)
    size = block // parts
    rows = max(1, min(triton.next_power_of_2(size), 8192 // wide))
    _pool[(blocks, batch * heads)](
        x, y, *x.stride(), heads, seq,
        D=head_dim, BD=wide, SIZE=size, PARTS=parts, ROWS=rows, num_warps=4,
    )  # fmt: skip
    return y.squeeze(3) if parts == 1 else y
