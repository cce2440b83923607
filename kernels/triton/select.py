"""The highest keys of each row as ascending lists: the row stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _select(
    score_ptr, always_ptr, count_ptr, index_ptr, always_b, always_h, always_m,
    heads, rows, columns, width, BN: tl.constexpr, HAS_ALWAYS: tl.constexpr,
):  # fmt: skip
    """Halve the range of keys until the count-th highest is found, then write its row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BN)
    inside = lane < columns
    score = tl.load(score_ptr + row * columns + lane, mask=inside, other=0.0).to(tl.float32)
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0.0 + 0.0 is 0.0
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(score == score, key, -2139095041)  # NaN ranks as -inf
    if HAS_ALWAYS:
        bh = row // rows
        at = (bh // heads) * always_b + (bh % heads) * always_h + (row % rows) * always_m
        always = tl.load(always_ptr + at + lane, mask=inside, other=0)
        key = tl.where(always != 0, 2147483647, key)
    count = tl.load(count_ptr + row)
    key = key.to(tl.int64)
    low = tl.full([], -2147483648, tl.int64)
    high = tl.full([], 2147483647, tl.int64)
    for _ in tl.range(0, 32):  # the highest cutoff that at least count keys reach
        middle = low + (high - low + 1) // 2
        reach = tl.sum(((key >= middle) & inside).to(tl.int32), 0)
        enough = reach >= count
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = (key > low) & inside
    ties = (key == low) & inside
    wanted = count - tl.sum(above.to(tl.int32), 0)
    tie_rank = tl.cumsum(ties.to(tl.int32), 0)
    kept = above | (ties & (tie_rank <= wanted))
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(index_ptr + row * width + place, lane, mask=kept & (place < width))


def launch(scores: Tensor, always: Tensor | None, counts: Tensor, width: int) -> Tensor:
    """Run the kernel; entries after the count are zero."""
    heads, rows, columns = scores.shape[1:]
    index = torch.zeros((*scores.shape[:-1], width), dtype=torch.int32, device=scores.device)
    strides: tuple[int, ...] = (0, 0, 0)
    mask = counts
    if always is not None:  # broadcast dimensions stay unexpanded: their stride is zero
        mask = always.to(torch.uint8).expand(*always.shape[:-1], columns).contiguous()
        mask = mask.expand(scores.shape)
        strides = mask.stride()[:3]
    lanes = triton.next_power_of_2(columns)
    _select[(counts.numel(),)](
        scores.contiguous(), mask, counts, index, *strides, heads, rows, columns, width,
        BN=lanes, HAS_ALWAYS=always is not None, num_warps=max(1, min(8, lanes // 256)),
    )  # fmt: skip
    return index
