"""Block-sparse backward: one kernel for dq over key lists, one for dk and dv over query lists.

Weights are recomputed from the log-sum-exp, in base 2. No atomics: every element is summed by one
program in list order, so results repeat exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.primitives import LOG2E, load_rows, shared_strides
from vidsparse.kernels.triton.transpose import transpose_plan


@triton.jit
def _weights(q, k, lse, q_valid, k_valid, scale_log2):
    """Attention weights ``[queries, keys]``, zero outside."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    inside = q_valid[:, None] & k_valid[None, :]
    return tl.exp2(tl.where(inside, s - lse[:, None], float("-inf")))


@triton.jit
def _dq(
    q_ptr, k_ptr, v_ptr, g_ptr, dq_ptr, lse_ptr, delta_ptr, count_ptr, index_ptr,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, g_b, g_h, g_s, g_d,
    dq_b, dq_h, dq_s, dq_d, count_b, count_h, index_b, index_h, index_m,
    heads, q_len, kv_len, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    PER_ROW: tl.constexpr = (Q_BLOCK + BM - 1) // BM
    SUBS: tl.constexpr = (KV_BLOCK + BN - 1) // BN
    row = tl.program_id(0) // PER_ROW
    position = row * Q_BLOCK + (tl.program_id(0) % PER_ROW) * BM + tl.arange(0, BM)
    valid = position < tl.minimum((row + 1) * Q_BLOCK, q_len)
    q = load_rows(q_ptr + b * q_b + h * q_h, position, valid, q_s, q_d, D, BD)
    g = load_rows(g_ptr + b * g_b + h * g_h, position, valid, g_s, g_d, D, BD)
    at = (b * heads + h) * q_len + position
    lse = tl.load(lse_ptr + at, mask=valid, other=0.0)
    delta = tl.load(delta_ptr + at, mask=valid, other=0.0)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    count = tl.load(count_ptr + b * count_b + h * count_h + row)
    listed = index_ptr + b * index_b + h * index_h + row.to(tl.int64) * index_m
    acc = tl.zeros([BM, BD], tl.float32)
    for n in tl.range(0, count * SUBS):
        first = tl.load(listed + n // SUBS) * KV_BLOCK
        key = first + (n % SUBS) * BN + tl.arange(0, BN)
        k_valid = key < tl.minimum(first + KV_BLOCK, kv_len)
        k = load_rows(k_ptr, key, k_valid, k_s, k_d, D, BD)
        v = load_rows(v_ptr, key, k_valid, v_s, v_d, D, BD)
        p = _weights(q, k, lse, valid, k_valid, scale_log2)
        ds = p * (tl.dot(g, tl.trans(v), input_precision="ieee") - delta[:, None])
        acc += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    dims = tl.arange(0, BD)
    to = b * dq_b + h * dq_h + position.to(tl.int64)[:, None] * dq_s + dims[None, :] * dq_d
    mask = valid[:, None] & (dims < D)[None, :]
    tl.store(dq_ptr + to, (acc * scale).to(dq_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dk_dv(
    q_ptr, k_ptr, v_ptr, g_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, count_ptr, index_ptr,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, g_b, g_h, g_s, g_d,
    dk_b, dk_h, dk_s, dk_d, dv_b, dv_h, dv_s, dv_d, count_b, count_h, index_b, index_h, index_n,
    heads, q_len, kv_len, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    PER_ROW: tl.constexpr = (KV_BLOCK + BN - 1) // BN
    SUBS: tl.constexpr = (Q_BLOCK + BM - 1) // BM
    row = tl.program_id(0) // PER_ROW
    key = row * KV_BLOCK + (tl.program_id(0) % PER_ROW) * BN + tl.arange(0, BN)
    k_valid = key < tl.minimum((row + 1) * KV_BLOCK, kv_len)
    k = load_rows(k_ptr + b * k_b + h * k_h, key, k_valid, k_s, k_d, D, BD)
    v = load_rows(v_ptr + b * v_b + h * v_h, key, k_valid, v_s, v_d, D, BD)
    q_ptr += b * q_b + h * q_h
    g_ptr += b * g_b + h * g_h
    rows_at = (b * heads + h) * q_len
    count = tl.load(count_ptr + b * count_b + h * count_h + row)
    listed = index_ptr + b * index_b + h * index_h + row.to(tl.int64) * index_n
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for n in tl.range(0, count * SUBS):
        first = tl.load(listed + n // SUBS) * Q_BLOCK
        position = first + (n % SUBS) * BM + tl.arange(0, BM)
        valid = position < tl.minimum(first + Q_BLOCK, q_len)
        q = load_rows(q_ptr, position, valid, q_s, q_d, D, BD)
        g = load_rows(g_ptr, position, valid, g_s, g_d, D, BD)
        lse = tl.load(lse_ptr + rows_at + position, mask=valid, other=0.0)
        delta = tl.load(delta_ptr + rows_at + position, mask=valid, other=0.0)
        p = _weights(q, k, lse, valid, k_valid, scale_log2)
        dv += tl.dot(tl.trans(p).to(g.dtype), g, input_precision="ieee")
        ds = p * (tl.dot(g, tl.trans(v), input_precision="ieee") - delta[:, None])
        dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    dims = tl.arange(0, BD)
    mask = k_valid[:, None] & (dims < D)[None, :]
    to = key.to(tl.int64)[:, None]
    dk_at = dk_ptr + b * dk_b + h * dk_h + to * dk_s + dims[None, :] * dk_d
    dv_at = dv_ptr + b * dv_b + h * dv_h + to * dv_s + dims[None, :] * dv_d
    tl.store(dk_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Queries and keys in a tile, warps, and tiles in flight."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def _tiles(head_dim: int, dtype: torch.dtype, plan: BlockPlan) -> Tiles:
    """What fits registers without spills on sm_90 (seen in ptxas' report for 64 and 128)."""
    most = 32 if dtype == torch.float32 or head_dim > 128 else 64
    queries, keys = (
        min(most, max(16, triton.next_power_of_2(block))) for block in (plan.q_block, plan.kv_block)
    )
    wide = head_dim > 64 and most == 64
    return Tiles(queries=queries, keys=keys, num_warps=8 if wide else 4, num_stages=2)


def launch(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both kernels; arguments and result as in ``attention_backward``.

    ``delta`` is the product of output and gradient in each row, less the gradient of its
    log-sum-exp.
    """
    batch, heads, q_len, head_dim = q.shape
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta = delta.float().contiguous()
    # a row without keys has no weights, and -inf - -inf would be NaN
    lse = lse.float().where(lse.isfinite(), 0).mul(LOG2E).contiguous()
    tiles = _tiles(head_dim, q.dtype, plan)
    shape = {
        "D": head_dim,
        "BD": max(16, triton.next_power_of_2(head_dim)),
        "BM": tiles.queries,
        "BN": tiles.keys,
        "Q_BLOCK": plan.q_block,
        "KV_BLOCK": plan.kv_block,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    inputs = (q, k, v, grad_out)
    strides = [stride for x in inputs for stride in x.stride()]
    count, index = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    grid = (plan.num_q_blocks * triton.cdiv(plan.q_block, tiles.queries), batch * heads)
    _dq[grid](
        *inputs, dq, lse, delta, count, index,
        *strides, *dq.stride(), *_list_strides(count, index),
        heads, q_len, plan.kv_len, scale, scale * LOG2E, **shape,
    )  # fmt: skip
    count, index = transpose_plan(plan)
    grid = (plan.num_kv_blocks * triton.cdiv(plan.kv_block, tiles.keys), batch * heads)
    _dk_dv[grid](
        *inputs, dk, dv, lse, delta, count, index,
        *strides, *dk.stride(), *dv.stride(), *_list_strides(count, index),
        heads, q_len, plan.kv_len, scale, scale * LOG2E, **shape,
    )  # fmt: skip
    return dq, dk, dv


def _list_strides(count: Tensor, index: Tensor) -> tuple[int, ...]:
    """Batch and head strides, and the stride of a row."""
    return (*shared_strides(count), *shared_strides(index), index.stride(2))
