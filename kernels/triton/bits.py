"""Lists of blocks to bits, and bits to lists: a program for each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _pack(count_ptr, index_ptr, word_ptr, width, words, BN: tl.constexpr):
    """Set the bits of a row's list, 32 to a word."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BN)
    listed = lane < tl.load(count_ptr + row)
    block = tl.load(index_ptr + row * width + lane, mask=listed, other=0)
    bit = tl.full([BN], 1, tl.int32) << (block & 31)
    tl.atomic_or(word_ptr + row * words + (block >> 5), bit, mask=listed, sem="relaxed")


@triton.jit
def _unpack(byte_ptr, count_ptr, index_ptr, number, size, BN: tl.constexpr):
    """List the set bits of a row; the places behind them are zero."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BN)
    byte = tl.load(byte_ptr + row * size + lane // 8, mask=lane < number, other=0).to(tl.int32)
    keep = (byte >> (lane % 8)) & 1
    place = tl.cumsum(keep, 0) - 1
    count = tl.sum(keep, 0)
    tl.store(count_ptr + row, tl.maximum(count, 1))
    index_ptr += row * number
    tl.store(index_ptr + place, lane, mask=keep != 0)
    tl.store(index_ptr + lane, tl.zeros_like(lane), mask=(lane >= count) & (lane < number))


def pack(count: Tensor, index: Tensor, number: int) -> Tensor:
    """Run the kernel; see ``pack_lists``."""
    words = triton.cdiv(number, 32)
    made = torch.zeros((*count.shape, words), dtype=torch.int32, device=count.device)
    width = index.shape[-1]
    wide = triton.next_power_of_2(width)
    _pack[(count.numel(),)](
        count.contiguous(), index.contiguous(), made, width, words,
        BN=wide, num_warps=_warps(wide),
    )  # fmt: skip
    return made.view(torch.uint8)[..., : triton.cdiv(number, 8)].contiguous()


def unpack(packed: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Run the kernel; see ``lists_of_bits``."""
    rows = packed.shape[:-1]
    count = torch.empty(rows, dtype=torch.int32, device=packed.device)
    index = torch.empty((*rows, number), dtype=torch.int32, device=packed.device)
    wide = triton.next_power_of_2(number)
    _unpack[(count.numel(),)](
        packed.contiguous(), count, index, number, packed.shape[-1],
        BN=wide, num_warps=_warps(wide),
    )  # fmt: skip
    return count, index


def _warps(lanes: int) -> int:
    return min(8, max(1, lanes // 512))
