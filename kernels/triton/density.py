"""Density of lists: one program a list of lists, where torch would start ten kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128


@triton.jit
def _density(
    count_ptr, index_ptr, size_ptr, out_ptr, count_b, count_h, count_m, index_b, index_h, index_m,
    heads, rows, kv_block, missing, number, share,
    STAND_INS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum up the pairs of one head; each is this ``share`` of all."""
    b = (tl.program_id(0) // heads).to(tl.int64)
    h = (tl.program_id(0) % heads).to(tl.int64)
    count_ptr += b * count_b + h * count_h
    index_ptr += b * index_b + h * index_h
    pairs = tl.zeros([ROWS], tl.float32)
    for start in tl.range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < rows
        count = tl.load(count_ptr + row * count_m, mask=there, other=0)
        at = row.to(tl.int64) * index_m + tl.maximum(count - 1, 0)
        last = tl.load(index_ptr + at, mask=there & (count > 0), other=-1)
        keys = count * kv_block - tl.where(last == number - 1, missing, 0)
        if STAND_INS:
            keys += number - count
        size = tl.load(size_ptr + row, mask=there, other=0.0)
        pairs += keys.to(tl.float32) * size
    tl.store(out_ptr + tl.program_id(0), tl.sum(pairs, 0) * share)


def launch(
    count: Tensor, index: Tensor, q_sizes: Tensor, kv_block: int, q_len: int, kv_len: int,
    stand_ins: bool,
) -> Tensor:  # fmt: skip
    """Run the kernel; see ``density_of_lists``."""
    index = index if index.stride(-1) == 1 else index.contiguous()
    batch, heads = map(max, count.shape[:2], index.shape[:2])
    count, index = count.expand(batch, heads, -1), index.expand(batch, heads, -1, -1)
    number = triton.cdiv(kv_len, kv_block)
    out = torch.empty((batch, heads), dtype=torch.float32, device=count.device)
    _density[(batch * heads,)](
        count, index, q_sizes.contiguous(), out, *count.stride(), *index.stride()[:3],
        heads, count.shape[-1], kv_block, number * kv_block - kv_len, number, 1 / (q_len * kv_len),
        STAND_INS=stand_ins, ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return out
