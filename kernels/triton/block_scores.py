"""Block mass and value error: maps of blocks are written, maps of their parts are not.

The map of masses is small (N is seq / block), so writing it and reading it twice costs a few per
cent of computing it again for a second pass over the parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
NOTHING: tl.constexpr = tl.constexpr(-1e30)  # stands for -inf where two of them may be subtracted


@triton.jit
def _mass(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, out_ptr, rows, columns, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """A tile of BI query blocks by BJ key blocks: one product for each pair of parts.

    With the parts as the loop, the log-sum-exp over them is element by element: no shuffles.
    """
    head = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    dims = tl.arange(0, BD)
    q_mask = (i < rows)[:, None] & (dims < D)[None, :]
    k_mask = (j < columns)[:, None] & (dims < D)[None, :]
    q_row = (head * rows + i) * A
    k_row = (head * columns + j) * B
    top = tl.full([BI, BJ], NOTHING, tl.float32)
    total = tl.zeros([BI, BJ], tl.float32)
    for pair in tl.range(0, A * B):
        q_at = q_row + pair // B
        k_at = k_row + pair % B
        q = tl.load(q_ptr + q_at[:, None] * D + dims[None, :], mask=q_mask, other=0.0)
        k = tl.load(k_ptr + k_at[:, None] * D + dims[None, :], mask=k_mask, other=0.0)
        q_bias = tl.load(q_bias_ptr + q_at, mask=i < rows, other=0.0)
        k_bias = tl.load(k_bias_ptr + k_at, mask=j < columns, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        s = tl.maximum(s + (q_bias[:, None] + k_bias[None, :]), NOTHING)
        # of the old sum and the new term, the smaller is rescaled: one exponential
        lower = tl.exp2(-tl.abs(s - top))
        total = tl.where(s > top, total * lower + 1.0, total + lower)
        top = tl.maximum(top, s)
    out = tl.where(top == NOTHING, float("-inf"), (top + tl.log2(total)) * LN2)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    to = (head * rows + i)[:, None] * columns + j[None, :]
    tl.store(out_ptr + to, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_tile(mass_ptr, v_ptr, row_at, j, dims, row_valid, columns, D: tl.constexpr):
    """Masses in base 2, ``[BI, BJ]``, and values, ``[BJ, BD]``, of key blocks ``j``."""
    valid = j < columns
    mask = row_valid[:, None] & valid[None, :]
    s = tl.load(mass_ptr + row_at[:, None] + j[None, :], mask=mask, other=float("-inf"))
    v_mask = valid[:, None] & (dims < D)[None, :]
    v = tl.load(v_ptr + j[:, None] * D + dims[None, :], mask=v_mask, other=0.0)
    return s.to(tl.float32) * LOG2E, v


@triton.jit
def _value_error(
    mass_ptr, v_ptr, out_ptr, rows, columns,
    D: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BI rows of the map: a first pass for the estimated output, a second for the distances."""
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    dims = tl.arange(0, BD)
    row_at = (head * rows + i) * columns
    v_ptr += head * columns * D
    m = tl.full([BI], float("-inf"), tl.float32)
    l = tl.zeros([BI], tl.float32)
    o = tl.zeros([BI, BD], tl.float32)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        s, v = _load_tile(mass_ptr, v_ptr, row_at, j, dims, i < rows, columns, D)
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m - m_safe)
        o = o * alpha[:, None] + tl.dot(p, v, input_precision=PRECISION)
        l = l * alpha + tl.sum(p, 1)
        m = m_new
    inverse = 1.0 / tl.where(l > 0, l, 1.0)
    o = o * inverse[:, None]
    o_square = tl.sum(o * o, 1)
    m = tl.where(m == float("-inf"), 0.0, m)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        s, v = _load_tile(mass_ptr, v_ptr, row_at, j, dims, i < rows, columns, D)
        square = o_square[:, None] + tl.sum(v * v, 1)[None, :]
        square -= 2 * tl.dot(o, tl.trans(v), input_precision=PRECISION)
        share = tl.exp2(s - m[:, None]) * inverse[:, None]
        error = share * tl.sqrt(tl.maximum(square, 0.0))
        mask = (i < rows)[:, None] & (j < columns)[None, :]
        to = out_ptr + row_at[:, None] + j[None, :]
        tl.store(to, error.to(out_ptr.dtype.element_ty), mask=mask)


def mass(
    query: Tensor, key: Tensor, weights: Tensor, sizes: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    """Run the kernel; see ``block_mass``."""
    batch, heads, rows, a, head_dim = query.shape
    columns, b = key.shape[2:4]
    wide = max(16, triton.next_power_of_2(head_dim))
    half = query.element_size() == 2
    # what fits registers without spilling, and 99 KiB of shared memory
    bi, bj, warps, stages = (64, 64, 4, 3) if half and wide <= 128 else (32, 64, 8, 2)
    out = torch.empty((batch, heads, rows, columns), dtype=dtype, device=query.device)
    _mass[(triton.cdiv(columns, bj), triton.cdiv(rows, bi), batch * heads)](
        query.contiguous(), key.to(query.dtype).contiguous(),
        weights.float().log2().contiguous(), sizes.float().log2().contiguous(), out,
        rows, columns, scale * LOG2E.value,
        D=head_dim, BD=wide, A=a, B=b, BI=bi, BJ=bj, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def value_error(mass: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Run the kernel; see ``block_value_error``."""
    batch, heads, rows, columns = mass.shape
    head_dim = value.shape[-1]
    # three TF32 products are as good as one in float32, and run on tensor cores
    half = value.element_size() == 2
    precision, bi = ("tf32", 32) if half else ("tf32x3", 16)
    # distances do not feel a shift, and |v|^2 + |o|^2 - 2 v . o cancels less around the mean
    value = value.float() - value.mean(dim=2, keepdim=True, dtype=torch.float32)
    wide = max(16, triton.next_power_of_2(head_dim))
    out = torch.empty((batch, heads, rows, columns), dtype=dtype, device=mass.device)
    _value_error[(triton.cdiv(rows, bi), batch * heads)](
        mass.contiguous(), value.expand(batch, heads, -1, -1).contiguous(), out, rows, columns,
        D=head_dim, BD=wide, BI=bi, BJ=32, PRECISION=precision, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
