"""Bits of partial blocks as the threads of a Hopper consumer hold scores.

A thread holds, of every eight columns, two neighbours, in two rows eight apart: 32 scores of 64
columns. Their bits are one word, in the order of its registers, so that they go to predicates seven
at a time, and no thread reads or shifts what is of others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton

ROWS = 128  # of a program


@triton.jit
def _reorder(bits_ptr, out_ptr, q_block, words, ROWS: tl.constexpr):
    """64 columns of a pattern, for the threads of some rows."""
    pattern = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1)
    thread = tl.program_id(2) * (ROWS * 2) + tl.arange(0, ROWS * 2)  # two rows are four threads
    lane = thread % 4
    row = thread // 32 * 16 + thread // 4 % 8
    there = thread < q_block * 2
    made = tl.zeros([ROWS * 2], tl.int32)
    for which in tl.static_range(2):
        at = bits_ptr + (pattern * q_block + row + 8 * which) * words + unit * 2
        for half in tl.static_range(2):
            word = tl.load(at + half, mask=there & (unit * 2 + half < words), other=0)
            for group in tl.static_range(4):
                pair = (word >> (8 * group + 2 * lane)) & 3
                made = made | (pair << (16 * half + 4 * group + 2 * which))
    number = tl.num_programs(1)
    tl.store(out_ptr + (pattern * number + unit) * (q_block * 2) + thread, made, mask=there)


def in_order_of_threads(bits: Tensor, *, impl: str = "auto") -> Tensor:
    """The bits of patterns, a word for what a thread holds of 64 columns.

    Args:
        bits: Of patterns, int32 ``(P, q_block, words)``, as ``Partial`` has them; ``q_block`` is a
            multiple of 16.
        impl: "triton", "reference" (plain torch), or "auto": Triton on CUDA.

    Returns:
        int32 ``(P, ceil(words / 2), q_block / 16, 8, 4)``: of thread ``(row, lane)``, bit
        ``4 g + 2 r + c`` is of row ``row + 8 r`` and column ``8 g + 2 lane + c``.
    """
    if use_triton(impl, bits):
        return _launch(bits)
    bits = torch.nn.functional.pad(bits, (0, bits.shape[-1] % 2))
    column = torch.arange(32, dtype=torch.int32, device=bits.device)
    each = (bits[..., None] >> column & 1).flatten(2)  # (P, q_block, columns)
    each = each.unflatten(2, (-1, 8, 4, 2)).unflatten(1, (-1, 2, 8))
    each = each.permute(0, 4, 1, 3, 6, 5, 2, 7).flatten(-3)  # group, of two rows, of two columns
    word = (each.long() << column.long()).sum(dim=-1)
    return (word & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def _launch(bits: Tensor) -> Tensor:
    number, q_block, words = bits.shape
    bits = bits.contiguous()
    made = bits.new_empty((number, triton.cdiv(words, 2), q_block // 16, 8, 4))
    grid = (number, made.shape[1], triton.cdiv(q_block, ROWS))
    _reorder[grid](bits, made, q_block, words, ROWS=ROWS, num_warps=4)
    return made
