"""Means of parts of blocks: every token is read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # elements that one program holds at a time


@triton.jit
def _pool(
    x_ptr, y_ptr, x_b, x_h, x_s, x_d, heads, seq, parts,
    D: tl.constexpr, BD: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """PARTS parts of SIZE tokens, ROWS tokens of each at a time."""
    # heads vary fastest: a token's heads lie side by side, and so do the reads of one wave
    bh = tl.program_id(0)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    part = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    dims = tl.arange(0, BD)
    start = part * SIZE
    end = tl.minimum(start + SIZE, seq)
    total = tl.zeros([PARTS, BD], tl.float32)
    for first in tl.range(0, SIZE, ROWS):
        token = (start + first)[:, None] + tl.arange(0, ROWS)[None, :]
        mask = (token < end[:, None])[:, :, None] & (dims < D)[None, None, :]
        at = token.to(tl.int64)[:, :, None] * x_s + dims.to(tl.int64)[None, None, :] * x_d
        total += tl.sum(tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32), 1)
    mean = total / tl.maximum(end - start, 1).to(tl.float32)[:, None]
    to = (bh.to(tl.int64) * parts + part)[:, None] * D + dims[None, :]
    mask = (part < parts)[:, None] & (dims < D)[None, :]
    tl.store(y_ptr + to, mean.to(y_ptr.dtype.element_ty), mask=mask)


def launch(x: Tensor, block: int, parts: int, dtype: torch.dtype) -> Tensor:
    """Run the kernel; see ``pool_blocks``."""
    batch, heads, seq, head_dim = x.shape
    blocks, wide, size = triton.cdiv(seq, block), triton.next_power_of_2(head_dim), block // parts
    y = torch.empty((batch, heads, blocks, parts, head_dim), dtype=dtype, device=x.device)
    # a tile of one part, or of several small ones
    rows = min(triton.next_power_of_2(size), max(1, TILE // wide))
    together = max(1, TILE // wide // rows) if rows >= size else 1
    _pool[(batch * heads, triton.cdiv(blocks * parts, together))](
        x, y, *x.stride(), heads, seq, blocks * parts,
        D=head_dim, BD=wide, SIZE=size, ROWS=rows, PARTS=together, num_warps=4,
    )  # fmt: skip
    return y.squeeze(3) if parts == 1 else y
