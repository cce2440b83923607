"""The errors of stand-ins: one program reads one block of keys and values for one tile of means."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.stand_in_error import HIGHEST

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _errors(
    q_ptr, k_ptr, v_ptr, score_ptr, top_ptr, mean_ptr, offset_ptr, square_ptr, mass_ptr,
    k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, o_b, o_h, heads, rows, number, scale_log2, highest,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, IS_FLOAT: tl.constexpr,
):  # fmt: skip
    block, bh = tl.program_id(0), tl.program_id(2).to(tl.int64)
    b, h = bh // heads, bh % heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    start = tl.load(offset_ptr + b * o_b + h * o_h + block)
    end = tl.load(offset_ptr + b * o_b + h * o_h + block + 1)
    dims, row = tl.arange(0, BD), tl.program_id(1) * BM + tl.arange(0, BM)
    row_mask = row < rows
    q_at = (bh * rows + row)[:, None] * D + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=row_mask[:, None] & (dims < D)[None, :], other=0.0)
    high = q.to(k_ptr.dtype.element_ty)
    low = (q - high.to(tl.float32)).to(k_ptr.dtype.element_ty)  # what bf16 leaves of a mean
    pair_at = (bh * rows + row) * number + block
    top = tl.load(top_ptr + bh * rows + row, mask=row_mask, other=0.0)
    mean_score = tl.load(score_ptr + pair_at, mask=row_mask, other=0.0)
    mean_weight = tl.exp2(tl.minimum(mean_score - top, 0.0) * LOG2E)
    mean = tl.load(mean_ptr + (bh * number + block) * D + dims, mask=dims < D, other=0.0)
    squares = tl.zeros([BM], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    for first in tl.range(start, end, BN):
        token = first + tl.arange(0, BN)
        at, mask = token.to(tl.int64)[:, None], (token < end)[:, None] & (dims < D)[None, :]
        k = tl.load(k_ptr + at * k_s + dims[None, :].to(tl.int64) * k_d, mask=mask, other=0.0)
        v = tl.load(v_ptr + at * v_s + dims[None, :].to(tl.int64) * v_d, mask=mask, other=0.0)
        v = v.to(tl.float32)
        norm, along = tl.sum(v * v, 1), tl.sum(v * mean[None, :], 1)
        s = tl.dot(high, tl.trans(k), input_precision="ieee")
        if not IS_FLOAT:
            s += tl.dot(low, tl.trans(k), input_precision="ieee")
        s = s * scale_log2 - (top * LOG2E)[:, None]
        weight = tl.exp2(tl.minimum(s, highest))
        weight = tl.where((token < end)[None, :], weight, 0.0)
        own = weight * norm[None, :] - 2 * mean_weight[:, None] * along[None, :]
        squares += tl.sum(weight * own, 1)
        mass += tl.sum(weight, 1)
    squares += mean_weight * mean_weight * tl.sum(mean * mean, 0) * (end - start)
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
) -> tuple[Tensor, Tensor]:
    """Squared error and mass of each block; see ``stand_in_error``."""
    batch, heads, _, head_dim = k.shape
    rows, number = mean_scores.shape[2:]
    offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
    squares, mass = torch.empty_like(mean_scores), torch.empty_like(mean_scores)
    wide = max(16, triton.next_power_of_2(head_dim))
    tall = min(64, max(16, triton.next_power_of_2(rows)))
    _errors[(number, triton.cdiv(rows, tall), batch * heads)](
        query.contiguous(), k, v, mean_scores.contiguous(), top.contiguous(),
        value_means.contiguous(), offsets, squares, mass,
        *k.stride(), *v.stride(), *offsets.stride()[:2], heads, rows, number,
        scale * LOG2E.value, HIGHEST * LOG2E.value,
        D=head_dim, BD=wide, BM=tall, BN=32 if wide > 128 else 64,
        IS_FLOAT=k.dtype == torch.float32, num_warps=4,
    )  # fmt: skip
    return squares, mass
