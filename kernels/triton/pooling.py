"""Block means: one program reads one block once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton.primitives import only_finite


@triton.jit
def _pool(
    x_ptr, y_ptr, x_b, x_h, x_s, x_d, heads, seq,
    D: tl.constexpr, BD: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
    TOGETHER: tl.constexpr, ROWS: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """The parts of one block, some of them together: enough loads are then under way."""
    block = tl.program_id(0)
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    dims = tl.arange(0, BD)
    for first_part in tl.static_range(0, PARTS, TOGETHER):
        part = block * PARTS + first_part + tl.arange(0, TOGETHER)
        total = tl.zeros([TOGETHER, BD], tl.float32)
        for first in tl.range(0, SIZE, ROWS):
            row = first + tl.arange(0, ROWS)
            token = (part * SIZE)[:, None] + row[None, :]
            inside = (row < SIZE)[None, :] & (token < seq)
            at = token.to(tl.int64)[:, :, None] * x_s + dims[None, None, :].to(tl.int64) * x_d
            mask = inside[:, :, None] & (dims < D)[None, None, :]
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            if FINITE:
                x = only_finite(x)
            total += tl.sum(x, 1)
        number = tl.minimum(tl.maximum(seq - part * SIZE, 1), SIZE).to(tl.float32)
        mean = total / number[:, None]
        to = (bh.to(tl.int64) * tl.num_programs(0) * PARTS + part)[:, None] * D + dims[None, :]
        tl.store(y_ptr + to, mean.to(y_ptr.dtype.element_ty), mask=(dims < D)[None, :])


AT_ONCE = 16_384  # numbers that a program loads together


def launch(x: Tensor, block: int, parts: int, dtype: torch.dtype, finite: bool) -> Tensor:
    """Run the kernel; see ``pool_blocks``."""
    batch, heads, seq, head_dim = x.shape
    blocks, wide = triton.cdiv(seq, block), triton.next_power_of_2(head_dim)
    y = torch.empty((batch, heads, blocks, parts, head_dim), dtype=dtype, device=x.device)
    size = block // parts
    rows = min(triton.next_power_of_2(size), max(1, AT_ONCE // wide))
    together = min(parts & -parts, max(1, AT_ONCE // (rows * wide)))
    _pool[(blocks, batch * heads)](
        x, y, *x.stride(), heads, seq,
        D=head_dim, BD=wide, SIZE=size, PARTS=parts, TOGETHER=together, ROWS=rows, FINITE=finite,
        num_warps=8 if rows * together * wide > 8192 else 4,
    )  # fmt: skip
    return y.squeeze(3) if parts == 1 else y


@triton.jit
def _pool_ragged(
    x_ptr, offset_ptr, y_ptr, x_b, x_h, x_s, x_d, o_b, o_h, heads, number,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, FINITE: tl.constexpr,
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
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
        if FINITE:
            x = only_finite(x)
        total += x
    mean = tl.sum(total, 0) / tl.maximum(end - start, 1).to(tl.float32)
    to = ((b * heads + h) * number + block) * D + dims
    tl.store(y_ptr + to, mean, mask=dims < D)


def launch_ragged(x: Tensor, offsets: Tensor, finite: bool) -> Tensor:
    """Means of blocks of unequal size; see ``pool_ragged``."""
    batch, heads, _, head_dim = x.shape
    number = offsets.shape[-1] - 1
    offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
    means = torch.empty((batch, heads, number, head_dim), dtype=torch.float32, device=x.device)
    wide = triton.next_power_of_2(head_dim)
    _pool_ragged[(number, batch * heads)](
        x, offsets, means, *x.stride(), *offsets.stride()[:2], heads, number,
        D=head_dim, BD=wide, ROWS=max(1, 8192 // wide), FINITE=finite, num_warps=4,
    )  # fmt: skip
    return means
