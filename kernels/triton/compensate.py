"""Pooled stand-ins for skipped blocks, continuing the softmax of the exact part in base 2."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, block_of_token

LOG2E = 1.4426950408889634
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _continue(
    q_ptr, o_ptr, lse_ptr, to_ptr, to_lse_ptr, key_ptr, value_ptr, bias_ptr, keep_ptr, row_ptr,
    q_b, q_h, q_s, q_d, o_b, o_h, o_s, o_d, to_b, to_h, to_s, to_d,
    bias_b, bias_h, keep_b, keep_h, row_b, row_h,
    heads, q_len, blocks, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of queries; a program walks over all blocks, most of which it skips or masks."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    valid = token < q_len
    inside = valid[:, None] & (dims < D)[None, :]
    at = token.to(tl.int64)[:, None]
    q = tl.load(q_ptr + b * q_b + h * q_h + at * q_s + dims[None, :] * q_d, mask=inside, other=0.0)
    acc = tl.load(
        o_ptr + b * o_b + h * o_h + at * o_s + dims[None, :] * o_d, mask=inside, other=0.0
    ).to(tl.float32)
    row = tl.load(row_ptr + b * row_b + h * row_h + token, mask=valid, other=0).to(tl.int64)
    rows_at = (b * heads + h) * q_len + token
    m = tl.load(lse_ptr + rows_at, mask=valid, other=0.0) / LN2
    l = tl.where(m == float("-inf"), 0.0, 1.0)
    key_ptr += (b * heads + h) * blocks * D
    value_ptr += (b * heads + h) * blocks * D
    for start in tl.range(0, blocks, BN):
        block = start + tl.arange(0, BN)
        exists = block < blocks
        bias = tl.load(bias_ptr + b * bias_b + h * bias_h + block, mask=exists, other=float("-inf"))
        keep = tl.load(
            keep_ptr + b * keep_b + h * keep_h + row[:, None] * blocks + block[None, :],
            mask=valid[:, None] & exists[None, :],
            other=1,
        )
        there = exists[:, None] & (dims < D)[None, :]
        mean = block.to(tl.int64)[:, None] * D + dims[None, :]
        key = tl.load(key_ptr + mean, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(key), input_precision="ieee") * scale_log2 + bias[None, :]
        s = tl.where(keep == 0, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - safe[:, None])
        alpha = tl.exp2(m - safe)
        value = tl.load(value_ptr + mean, mask=there, other=0.0)
        acc = acc * alpha[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        l = l * alpha + tl.sum(p, 1)
        m = m_new
    safe = tl.where(l > 0, l, 1.0)
    out = acc / safe[:, None]
    to = to_ptr + b * to_b + h * to_h + at * to_s + dims[None, :] * to_d
    tl.store(to, out.to(to_ptr.dtype.element_ty), mask=inside)
    lse = tl.where(l > 0, (m + tl.log2(safe)) * LN2, float("-inf"))
    tl.store(to_lse_ptr + rows_at, lse, mask=valid)


def launch(
    q: Tensor, out: Tensor, lse: Tensor, plan: BlockPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments and result as in ``kernels/compensate.py``."""
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
    row = block_of_token(q_len, plan.q_block, plan.q_offsets, plan.q_order)
    row = row.to(device=q.device, dtype=torch.int32).contiguous()
    result, new_lse = torch.empty_like(q), torch.empty_like(lse)
    queries = 64 if head_dim > 128 or q.dtype == torch.float32 else 128
    _continue[(triton.cdiv(q_len, queries), batch * heads)](
        q, out, lse.contiguous(), result, new_lse, key, value, bias, keep, row,
        *q.stride(), *out.stride(), *result.stride(),
        *(0 if x.shape[i] == 1 else x.stride(i) for x in (bias, keep, row) for i in (0, 1)),
        heads, q_len, blocks, scale * LOG2E,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), BM=queries, BN=64,
        num_warps=4 if queries == 64 else 8, num_stages=2,
    )  # fmt: skip
    return result, new_lse
