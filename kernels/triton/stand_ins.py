"""Pooled stand-ins for skipped blocks, continuing the softmax of the exact part in base 2."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.primitives import LN2, LOG2E, load_rows, shared_strides
from vidsparse.kernels.triton.query_tiles import rows_of_tile, tiles_of_rows


@triton.jit
def _continue(
    q_ptr, o_ptr, lse_ptr, to_ptr, to_lse_ptr, key_ptr, value_ptr, bias_ptr, keep_ptr,
    tile_row_ptr, tile_start_ptr, tile_end_ptr,
    q_b, q_h, q_s, q_d, o_b, o_h, o_s, o_d, to_b, to_h, to_s, to_d,
    bias_b, bias_h, keep_b, keep_h, tile_b, tile_h,
    heads, rows, q_len, blocks, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    Q_BLOCK: tl.constexpr, HAS_Q_TILES: tl.constexpr,
):  # fmt: skip
    """One tile of queries; a program walks over all blocks and masks those its row has listed."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    row, start, end = rows_of_tile(
        tl.program_id(0), b * tile_b + h * tile_h, tile_row_ptr, tile_start_ptr, tile_end_ptr,
        q_len, BM, Q_BLOCK, HAS_Q_TILES,
    )  # fmt: skip
    if row >= rows:
        return
    token = start + tl.arange(0, BM)
    valid = token < end
    q = load_rows(q_ptr + b * q_b + h * q_h, token, valid, q_s, q_d, D, BD)
    acc = load_rows(o_ptr + b * o_b + h * o_h, token, valid, o_s, o_d, D, BD).to(tl.float32)
    lse_at = (b * heads + h) * q_len + token
    m = tl.load(lse_ptr + lse_at, mask=valid, other=0.0) / LN2
    l = tl.where(m == float("-inf"), 0.0, 1.0)
    key_ptr += (b * heads + h) * blocks * D
    value_ptr += (b * heads + h) * blocks * D
    bias_ptr += b * bias_b + h * bias_h
    keep_ptr += b * keep_b + h * keep_h + row.to(tl.int64) * blocks
    for first in tl.range(0, blocks, BN):
        block = first + tl.arange(0, BN)
        exists = block < blocks
        bias = tl.load(bias_ptr + block, mask=exists, other=float("-inf"))
        keep = tl.load(keep_ptr + block, mask=exists, other=1)
        bias = tl.where(keep == 0, bias, float("-inf"))
        key = load_rows(key_ptr, block, exists, D, 1, D, BD)
        s = tl.dot(q, tl.trans(key), input_precision="ieee") * scale_log2 + bias[None, :]
        m_new = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - safe[:, None])
        alpha = tl.exp2(m - safe)
        value = load_rows(value_ptr, block, exists, D, 1, D, BD)
        acc = acc * alpha[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        l = l * alpha + tl.sum(p, 1)
        m = m_new
    safe = tl.where(l > 0, l, 1.0)
    dims = tl.arange(0, BD)[None, :].to(tl.int64)
    to = to_ptr + b * to_b + h * to_h + token.to(tl.int64)[:, None] * to_s + dims * to_d
    out = (acc / safe[:, None]).to(to_ptr.dtype.element_ty)
    tl.store(to, out, mask=valid[:, None] & (dims < D))
    lse = tl.where(l > 0, (m + tl.log2(safe)) * LN2, float("-inf"))
    tl.store(to_lse_ptr + lse_at, lse, mask=valid)


def launch(
    q: Tensor, out: Tensor, lse: Tensor, plan: BlockPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments and result as in ``engines/stand_ins.py``."""
    assert plan.pooled is not None
    batch, heads, q_len, head_dim = q.shape
    blocks = plan.num_kv_blocks
    shape = (batch, heads, blocks, head_dim)
    key, value = (
        x.to(q.dtype).expand(shape).contiguous() for x in (plan.pooled.key, plan.pooled.value)
    )
    bias = (plan.pooled.size.float().log() * LOG2E).reshape(-1, *plan.pooled.size.shape[-1:])
    bias = bias.view(*(plan.pooled.size.shape[:-1] or (1, 1)), blocks)
    keep = plan.to_block_mask().to(torch.uint8)
    small = head_dim > 128 or q.dtype == torch.float32  # shared memory is 99 KiB on many GPUs
    # clusters fill tiles of 64 better, and 128 rows keep more than the registers of most GPUs hold
    most = 64 if small or plan.q_offsets is not None else 128
    queries = min(most, max(16, triton.next_power_of_2(plan.q_block)))
    tiles = tiles_of_rows(plan, queries)
    result, new_lse = torch.empty_like(q), torch.empty_like(lse)
    _continue[(tiles.number, batch * heads)](
        q, out, lse.contiguous(), result, new_lse, key, value, bias, keep,
        *(keep if x is None else x for x in tiles[:3]),
        *q.stride(), *out.stride(), *result.stride(),
        *(stride for x in (bias, keep, tiles.row) for stride in shared_strides(x)),
        heads, plan.num_q_blocks, q_len, blocks, scale * LOG2E,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), BM=queries,
        BN=32 if small else 64,
        Q_BLOCK=plan.q_block, HAS_Q_TILES=tiles.row is not None,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return result, new_lse
