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


@triton.jit
def _pool_ragged(
    x_ptr, offset_ptr, y_ptr, x_b, x_h, x_s, x_d, o_b, o_h, heads, number,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    x_ptr += b * x_b + h * x_h
    start = tl.load(offset_ptr + b * o_b + h * o_h + block)
    end = tl.load(offset_ptr + b * o_b + h * o_h + block + 1)
    dims = tl.arange(0, BD)
    total = tl.zeros([ROWS, BD], tl.float32)
    for first in tl.range(start, end, ROWS):
        token = first + tl.arange(0, ROWS)
        x_at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
        mask = (token < end)[:, None] & (dims < D)[None, :]
        total += tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / tl.maximum(end - start, 1).to(tl.float32)
    to = ((b * heads + h) * number + block) * D + dims
    tl.store(y_ptr + to, mean, mask=dims < D)


def launch_ragged(x: Tensor, offsets: Tensor) -> Tensor:
    """Means of blocks of unequal size; see ``pool_ragged``."""
    batch, heads, _, head_dim = x.shape
    number = offsets.shape[-1] - 1
    offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
    means = torch.empty((batch, heads, number, head_dim), dtype=torch.float32, device=x.device)
    wide = triton.next_power_of_2(head_dim)
    _pool_ragged[(number, batch * heads)](
        x, offsets, means, *x.stride(), *offsets.stride()[:2], heads, number,
        D=head_dim, BD=wide, ROWS=max(1, 4096 // wide), num_warps=4,
    )  # fmt: skip
    return means
