"""The errors of stand-ins: one program reads one block of keys and values for one tile of means."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton import primitives

LOG2E: tl.constexpr = tl.constexpr(primitives.LOG2E)


@triton.jit
def _values(
    v_ptr, mean_ptr, offset_ptr, norm_ptr, along_ptr,
    v_b, v_h, v_s, v_d, o_b, o_h, heads, number, seq,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The squared norm of each value, and its product with the mean of its block."""
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    v_ptr += b * v_b + h * v_h
    start = tl.load(offset_ptr + b * o_b + h * o_h + block)
    end = tl.load(offset_ptr + b * o_b + h * o_h + block + 1)
    dims = tl.arange(0, BD)
    mean = tl.load(mean_ptr + (bh * number + block) * D + dims, mask=dims < D, other=0.0)
    for first in tl.range(start, end, BN):
        token = first + tl.arange(0, BN)
        at, mask = token.to(tl.int64)[:, None], (token < end)[:, None] & (dims < D)[None, :]
        v = tl.load(v_ptr + at * v_s + dims[None, :].to(tl.int64) * v_d, mask=mask, other=0.0)
        v = v.to(tl.float32)
        tl.store(norm_ptr + bh * seq + token, tl.sum(v * v, 1), mask=token < end)
        tl.store(along_ptr + bh * seq + token, tl.sum(v * mean[None, :], 1), mask=token < end)


@triton.jit
def _errors(
    q_ptr, k_ptr, norm_ptr, along_ptr, score_ptr, top_ptr, mean_norm_ptr, offset_ptr,
    square_ptr, mass_ptr,
    k_b, k_h, k_s, k_d, o_b, o_h, heads, rows, number, seq, scale_log2, highest,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    IS_FLOAT: tl.constexpr,
):  # fmt: skip
    """A tile of means against some blocks, one after another."""
    bh = tl.program_id(2).to(tl.int64)
    b, h = bh // heads, bh % heads
    k_ptr += b * k_b + h * k_h
    norm_ptr += bh * seq
    along_ptr += bh * seq
    offset_ptr += b * o_b + h * o_h
    dims, row = tl.arange(0, BD), tl.program_id(0) * BM + tl.arange(0, BM)
    row_mask = row < rows
    q_at = (bh * rows + row)[:, None] * D + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=row_mask[:, None] & (dims < D)[None, :], other=0.0)
    high = q.to(k_ptr.dtype.element_ty)
    low = (q - high.to(tl.float32)).to(k_ptr.dtype.element_ty)  # what bf16 leaves of a mean
    top = tl.load(top_ptr + bh * rows + row, mask=row_mask, other=0.0)
    top_log2 = top * LOG2E
    first_block = tl.program_id(1) * GROUP
    for block in tl.range(first_block, tl.minimum(first_block + GROUP, number)):
        start, end = tl.load(offset_ptr + block), tl.load(offset_ptr + block + 1)
        pair_at = (bh * rows + row) * number + block
        mean_score = tl.load(score_ptr + pair_at, mask=row_mask, other=0.0)
        mean_weight = tl.exp2(tl.minimum(mean_score - top, 0.0) * LOG2E)
        squares = tl.zeros([BM], tl.float32)
        mass = tl.zeros([BM], tl.float32)
        for first in tl.range(start, end, BN):
            token = first + tl.arange(0, BN)
            there = token < end
            k_at = token.to(tl.int64)[:, None] * k_s + dims[None, :].to(tl.int64) * k_d
            k = tl.load(k_ptr + k_at, mask=there[:, None] & (dims < D)[None, :], other=0.0)
            norm = tl.load(norm_ptr + token, mask=there, other=0.0)
            along = tl.load(along_ptr + token, mask=there, other=0.0)
            s = tl.dot(high, tl.trans(k), input_precision="ieee")
            if not IS_FLOAT:
                s = tl.dot(low, tl.trans(k), s, input_precision="ieee")
            s = s * scale_log2 - top_log2[:, None]
            weight = tl.exp2(tl.minimum(s, highest))
            weight = tl.where(there[None, :], weight, 0.0)
            own = weight * norm[None, :] - 2 * mean_weight[:, None] * along[None, :]
            squares += tl.sum(weight * own, 1)
            mass += tl.sum(weight, 1)
        mean_norm = tl.load(mean_norm_ptr + bh * number + block)
        squares += mean_weight * mean_weight * mean_norm * (end - start)
        tl.store(square_ptr + pair_at, squares, mask=row_mask)
        tl.store(mass_ptr + pair_at, mass, mask=row_mask)


def launch(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    mean_scores: Tensor,
    top: Tensor,
    value_means: Tensor,
    offsets: Tensor,
    scale: float,
    highest: float,
) -> tuple[Tensor, Tensor]:
    """Squared error and mass of each block; see ``stand_in_error``."""
    batch, heads, seq, head_dim = k.shape
    rows, number = mean_scores.shape[2:]
    offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
    value_means = value_means.contiguous()
    norm, along = (
        torch.empty((batch, heads, seq), dtype=torch.float32, device=k.device) for _ in range(2)
    )
    wide = max(16, triton.next_power_of_2(head_dim))
    _values[(number, batch * heads)](
        v, value_means, offsets, norm, along, *v.stride(), *offsets.stride()[:2],
        heads, number, seq, D=head_dim, BD=wide, BN=max(1, 8192 // wide), num_warps=4,
    )  # fmt: skip
    squares, mass = torch.empty_like(mean_scores), torch.empty_like(mean_scores)
    small = wide > 128 or k.dtype == torch.float32  # shared memory is 99 KiB on many GPUs
    tall = min(64 if small else 128, max(16, triton.next_power_of_2(rows)))
    group = 8  # blocks that a program takes, so that it reads its means once for all of them
    _errors[(triton.cdiv(rows, tall), triton.cdiv(number, group), batch * heads)](
        query.contiguous(), k, norm, along, mean_scores.contiguous(), top.contiguous(),
        value_means.square().sum(dim=-1), offsets, squares, mass,
        *k.stride(), *offsets.stride()[:2], heads, rows, number, seq,
        scale * LOG2E.value, highest * LOG2E.value,
        D=head_dim, BD=wide, BM=tall, BN=32 if small else 64, GROUP=group,
        IS_FLOAT=k.dtype == torch.float32, num_warps=8 if tall == 128 else 4,
    )  # fmt: skip
    return squares, mass
