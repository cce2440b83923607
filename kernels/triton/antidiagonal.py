"""Antidiagonal scores: one pass for the log-sum-exp of each query group, one for block sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634


@triton.jit
def _group_scores(
    q_ptr, k_ptr, u, v, q_len, kv_len, q_s, q_d, k_s, k_d, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """Antidiagonal sums of query groups u against key groups v: ``[BU, BV]``."""
    dims = tl.arange(0, BD)
    s = tl.zeros([BU, BV], tl.float32)
    for r in tl.range(0, STRIDE):
        row = u * STRIDE + r
        column = v * STRIDE + STRIDE - 1 - r
        q_at = row.to(tl.int64)[:, None] * q_s + dims[None, :].to(tl.int64) * q_d
        k_at = column.to(tl.int64)[:, None] * k_s + dims[None, :].to(tl.int64) * k_d
        q = tl.load(q_ptr + q_at, mask=(row < q_len)[:, None] & (dims < D)[None, :], other=0.0)
        k = tl.load(k_ptr + k_at, mask=(column < kv_len)[:, None] & (dims < D)[None, :], other=0.0)
        s += tl.dot(q, tl.trans(k), input_precision="ieee")
    exists = v * STRIDE < kv_len
    return tl.where(exists[None, :], s * scale_log2, float("-inf"))


@triton.jit
def _antidiagonal(
    q_ptr, k_ptr, out_ptr, q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d,
    heads, q_len, kv_len, columns, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr,
    PER_BLOCK: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """One query block: its PER_BLOCK groups, of at most BU, against all key groups."""
    row = tl.program_id(0)
    bh = tl.program_id(1)
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    lane = tl.arange(0, BU)
    u = row * PER_BLOCK + lane
    mine = (lane < PER_BLOCK) & (u * STRIDE < q_len)
    m = tl.full([BU], float("-inf"), tl.float32)
    l = tl.zeros([BU], tl.float32)
    for start in tl.range(0, tl.cdiv(kv_len, STRIDE), BV):
        v = start + tl.arange(0, BV)
        s = _group_scores(
            q_ptr, k_ptr, u, v, q_len, kv_len, q_s, q_d, k_s, k_d, scale_log2,
            D, BD, BU, BV, STRIDE,
        )  # fmt: skip
        m_new = tl.maximum(m, tl.max(s, 1))
        l = l * tl.exp2(m - m_new) + tl.sum(tl.exp2(s - m_new[:, None]), 1)
        m = m_new
    weight = tl.where(mine, 1.0, 0.0) / (l * tl.sum(tl.where(mine, 1.0, 0.0), 0))
    out_ptr += (bh.to(tl.int64) * tl.num_programs(0) + row) * columns
    lanes = tl.arange(0, BV)
    BLOCKS: tl.constexpr = BV // PER_BLOCK if PER_BLOCK <= BV else 1
    for start in tl.range(0, columns, BLOCKS):
        total = tl.zeros([BV], tl.float32)
        for part in tl.static_range((PER_BLOCK + BV - 1) // BV):
            inside = part * BV + lanes < PER_BLOCK * BLOCKS
            v = start * PER_BLOCK + part * BV + lanes
            s = _group_scores(
                q_ptr, k_ptr, u, v, q_len, kv_len, q_s, q_d, k_s, k_d, scale_log2,
                D, BD, BU, BV, STRIDE,
            )  # fmt: skip
            p = tl.sum(tl.exp2(s - m[:, None]) * weight[:, None], 0)
            total += tl.where(inside, p, 0.0)
        block = tl.arange(0, BV)
        member = (lanes // PER_BLOCK)[None, :] == block[:, None]
        if PER_BLOCK > BV:
            member = block[:, None] == 0
        sums = tl.sum(tl.where(member, total[None, :], 0.0), 1)
        tl.store(out_ptr + start + block, sums, mask=(block < BLOCKS) & (start + block < columns))


def launch(q: Tensor, k: Tensor, block: int, stride: int, scale: float) -> Tensor:
    """Run the kernel; see ``antidiagonal_scores``."""
    batch, heads, q_len, head_dim = q.shape
    kv_len = k.shape[2]
    rows, columns = triton.cdiv(q_len, block), triton.cdiv(kv_len, block)
    out = torch.empty((batch, heads, rows, columns), dtype=torch.float32, device=q.device)
    per_block = block // stride
    _antidiagonal[(rows, batch * heads)](
        q, k, out, *q.stride(), *k.stride(), heads, q_len, kv_len, columns,
        scale / stride * LOG2E,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)),
        BU=max(16, triton.next_power_of_2(per_block)), BV=64, PER_BLOCK=per_block, STRIDE=stride,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
