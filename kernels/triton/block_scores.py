"""Block mass and value error; maps of blocks are written, maps of their parts are not."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _mass(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, out_ptr, rows, columns, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """A tile of BI query blocks by BJ key blocks: one product of their parts, summed in place."""
    head = tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BD)
    row = tl.program_id(1) * BI * A + tl.arange(0, BI * A)
    column = tl.program_id(0) * BJ * B + tl.arange(0, BJ * B)
    row_valid, column_valid = row < rows * A, column < columns * B
    q_at = (head * rows * A + row)[:, None] * D + dims[None, :]
    k_at = (head * columns * B + column)[:, None] * D + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=row_valid[:, None] & (dims < D)[None, :], other=0.0)
    k = tl.load(k_ptr + k_at, mask=column_valid[:, None] & (dims < D)[None, :], other=0.0)
    q_bias = tl.load(q_bias_ptr + row, mask=row_valid, other=float("-inf"))
    k_bias = tl.load(k_bias_ptr + column, mask=column_valid, other=float("-inf"))
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    s += q_bias[:, None] + k_bias[None, :]
    s = tl.reshape(s, [BI, A, BJ, B])
    top = tl.max(tl.max(s, 3), 1)  # [BI, BJ]
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.sum(tl.exp2(s - top[:, None, :, None]), 3), 1)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    total = tl.where(mask, total, 1.0)
    out = (top + tl.log2(total)) * LN2
    tl.store(out_ptr + (head * rows + i)[:, None] * columns + j[None, :], out, mask=mask)


@triton.jit
def _value_error(
    mass_ptr, v_ptr, out_ptr, rows, columns,
    D: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """BI rows of the map: a first pass for the estimated output, a second for the distances."""
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    dims = tl.arange(0, BD)
    row_at = (head * rows + i)[:, None] * columns
    m = tl.full([BI], float("-inf"), tl.float32)
    l = tl.zeros([BI], tl.float32)
    o = tl.zeros([BI, BD], tl.float32)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        inside = (i < rows)[:, None] & (j < columns)[None, :]
        s = tl.load(mass_ptr + row_at + j[None, :], mask=inside, other=float("-inf"))
        v_at = (head * columns + j)[:, None] * D + dims[None, :]
        v = tl.load(v_ptr + v_at, mask=(j < columns)[:, None] & (dims < D)[None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp(s - safe[:, None])
        alpha = tl.exp(m - safe)
        o = o * alpha[:, None] + tl.dot(p, v, input_precision="tf32x3")
        l = l * alpha + tl.sum(p, 1)
        m = m_new
    l = tl.where(l > 0, l, 1.0)
    o = o / l[:, None]
    m = tl.where(m == float("-inf"), 0.0, m)
    o_norm = tl.sum(o * o, 1)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        inside = (i < rows)[:, None] & (j < columns)[None, :]
        s = tl.load(mass_ptr + row_at + j[None, :], mask=inside, other=float("-inf"))
        v_at = (head * columns + j)[:, None] * D + dims[None, :]
        v = tl.load(v_ptr + v_at, mask=(j < columns)[:, None] & (dims < D)[None, :], other=0.0)
        square = o_norm[:, None] + tl.sum(v * v, 1)[None, :]
        square -= 2 * tl.dot(o, tl.trans(v), input_precision="tf32x3")
        error = tl.exp(s - m[:, None]) / l[:, None] * tl.sqrt(tl.maximum(square, 0.0))
        tl.store(out_ptr + row_at + j[None, :], error, mask=inside)


def mass(query: Tensor, key: Tensor, weights: Tensor, sizes: Tensor, scale: float) -> Tensor:
    """Run the kernel; see ``block_mass``."""
    batch, heads, rows, a, head_dim = query.shape
    columns, b = key.shape[2:4]
    out = torch.empty((batch, heads, rows, columns), dtype=torch.float32, device=query.device)
    side = 64 if query.dtype in (torch.float16, torch.bfloat16) else 32  # no spills
    bi, bj = max(1, side // a), max(1, side // b)
    _mass[(triton.cdiv(columns, bj), triton.cdiv(rows, bi), batch * heads)](
        query.contiguous(), key.contiguous(),
        (weights.log() * LOG2E).contiguous(), (sizes.log() * LOG2E).contiguous(), out,
        rows, columns, scale * LOG2E,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), A=a, B=b, BI=bi, BJ=bj,
        num_warps=4,
    )  # fmt: skip
    return out


def value_error(mass: Tensor, value: Tensor) -> Tensor:
    """Run the kernel; see ``block_value_error``."""
    batch, heads, rows, columns = mass.shape
    head_dim = value.shape[-1]
    value = value.expand(batch, heads, -1, -1).contiguous()
    out = torch.empty_like(mass)
    _value_error[(triton.cdiv(rows, 32), batch * heads)](
        mass.contiguous(), value, out, rows, columns,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), BI=32, BJ=32, num_warps=4,
    )  # fmt: skip
    return out
