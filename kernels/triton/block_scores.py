"""Block mass and value error; maps of blocks are written, maps of their parts are not."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton.primitives import LN2, LOG2E, load_rows


@triton.jit
def _mass(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, out_ptr, rows, columns, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """A tile of BI query blocks by BJ key blocks: all parts of the keys, query parts in turn."""
    head = tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BD)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    column = tl.program_id(0) * BJ * B + tl.arange(0, BJ * B)
    exists = column < columns * B
    k_at = (head * columns * B + column)[:, None] * D + dims[None, :]
    k = tl.load(k_ptr + k_at, mask=exists[:, None] & (dims < D)[None, :], other=0.0)
    k_bias = tl.load(k_bias_ptr + column, mask=exists, other=float("-inf"))
    top = tl.full([BI, BJ], float("-inf"), tl.float32)
    total = tl.zeros([BI, BJ], tl.float32)
    for part in tl.range(0, A):
        row = i * A + part
        q_at = (head * rows * A + row)[:, None] * D + dims[None, :]
        q = tl.load(q_ptr + q_at, mask=(i < rows)[:, None] & (dims < D)[None, :], other=0.0)
        q_bias = tl.load(q_bias_ptr + row, mask=i < rows, other=float("-inf"))
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        s = tl.reshape(s + (q_bias[:, None] + k_bias[None, :]) * (1 / LN2), [BI, BJ, B])
        higher = tl.maximum(top, tl.max(s, 2))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        more = tl.sum(tl.exp2(s - safe[:, :, None]), 2)
        total = total * tl.exp2(top - safe) + more
        top = higher
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    top = tl.where(top == float("-inf"), 0.0, top)
    out = (top + tl.log2(tl.where(mask, total, 1.0))) * LN2
    tl.store(out_ptr + (head * rows + i)[:, None] * columns + j[None, :], out, mask=mask)


@triton.jit
def _rest(x, part):
    """What a part in fewer bits leaves of float32."""
    return x - part.to(tl.float32)


@triton.jit
def _split(
    value_ptr, high_ptr, middle_ptr, low_ptr, norm_ptr, v_b, v_h, v_n, v_d, heads, columns,
    D: tl.constexpr, BD: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Values of one head less their mean, in three parts, and their squared norms.

    Less their mean distances stay as they are, and less of large numbers cancels in them.
    """
    kind = high_ptr.dtype.element_ty
    head = tl.program_id(0).to(tl.int64)
    value_ptr += head // heads * v_b + head % heads * v_h
    dims = tl.arange(0, BD)
    total = tl.zeros([BD], tl.float32)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        x = load_rows(value_ptr, j, j < columns, v_n, v_d, D, BD).to(tl.float32)
        total += tl.sum(x, 0)
    mean = total / columns
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        exists = (j < columns)[:, None] & (dims < D)[None, :]
        x = load_rows(value_ptr, j, j < columns, v_n, v_d, D, BD).to(tl.float32)
        x = tl.where(exists, x - mean[None, :], 0.0)
        high = x.to(kind)
        rest = _rest(x, high)
        middle = rest.to(kind)
        at = (head * columns + j)[:, None] * D + dims[None, :]
        tl.store(high_ptr + at, high, mask=exists)
        tl.store(middle_ptr + at, middle, mask=exists)
        tl.store(low_ptr + at, _rest(rest, middle).to(kind), mask=exists)
        tl.store(norm_ptr + head * columns + j, tl.sum(x * x, 1), mask=j < columns)


@triton.jit
def _value_error(
    mass_ptr, high_ptr, middle_ptr, low_ptr, norm_ptr, out_ptr, rows, columns,
    D: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """BI rows of the map: a first pass for the estimated output, a second for the distances.

    Tensor cores multiply bf16, so float32 comes in three parts of it. The output may lack the last:
    distances are then from where it was put. In them large numbers cancel, so all count.
    """
    kind = high_ptr.dtype.element_ty
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
        v_mask = (j < columns)[:, None] & (dims < D)[None, :]
        high = tl.load(high_ptr + v_at, mask=v_mask, other=0.0)
        middle = tl.load(middle_ptr + v_at, mask=v_mask, other=0.0)
        m_new = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp(s - safe[:, None])
        alpha = tl.exp(m - safe)
        p_high = p.to(kind)
        p_middle = _rest(p, p_high).to(kind)
        o = o * alpha[:, None]
        o = tl.dot(p_high, high, o, input_precision="ieee")
        o = tl.dot(p_high, middle, o, input_precision="ieee")
        o = tl.dot(p_middle, high, o, input_precision="ieee")
        l = l * alpha + tl.sum(p, 1)
        m = m_new
    l = tl.where(l > 0, l, 1.0)
    o = o / l[:, None]
    m = tl.where(m == float("-inf"), 0.0, m)
    o_norm = tl.sum(o * o, 1)
    o_high = o.to(kind)
    o_middle = _rest(o, o_high).to(kind)
    o_low = _rest(_rest(o, o_high), o_middle).to(kind)
    for start in tl.range(0, columns, BJ):
        j = start + tl.arange(0, BJ)
        inside = (i < rows)[:, None] & (j < columns)[None, :]
        s = tl.load(mass_ptr + row_at + j[None, :], mask=inside, other=float("-inf"))
        norm = tl.load(norm_ptr + head * columns + j, mask=j < columns, other=0.0)
        v_at = (head * columns + j)[:, None] * D + dims[None, :]
        v_mask = (j < columns)[:, None] & (dims < D)[None, :]
        v = tl.trans(tl.load(high_ptr + v_at, mask=v_mask, other=0.0))
        along = tl.dot(o_low, v, input_precision="ieee")
        along = tl.dot(o_middle, v, along, input_precision="ieee")
        along = tl.dot(o_high, v, along, input_precision="ieee")
        v = tl.trans(tl.load(middle_ptr + v_at, mask=v_mask, other=0.0))
        along = tl.dot(o_middle, v, along, input_precision="ieee")
        along = tl.dot(o_high, v, along, input_precision="ieee")
        v = tl.trans(tl.load(low_ptr + v_at, mask=v_mask, other=0.0))
        along = tl.dot(o_high, v, along, input_precision="ieee")
        square = o_norm[:, None] + norm[None, :] - 2 * along
        error = tl.exp(s - m[:, None]) / l[:, None] * tl.sqrt(tl.maximum(square, 0.0))
        tl.store(out_ptr + row_at + j[None, :], error, mask=inside)


def mass(query: Tensor, key: Tensor, q_bias: Tensor, k_bias: Tensor, scale: float) -> Tensor:
    """Run the kernel; see ``block_mass``."""
    batch, heads, rows, a, head_dim = query.shape
    columns, b = key.shape[2:4]
    out = torch.empty((batch, heads, rows, columns), dtype=torch.float32, device=query.device)
    wide = max(16, triton.next_power_of_2(head_dim))
    narrow = query.dtype in (torch.float16, torch.bfloat16) and wide <= 128
    bi, bj = (64, max(1, 128 // b)) if narrow else (32, max(1, 64 // b))
    _mass[(triton.cdiv(columns, bj), triton.cdiv(rows, bi), batch * heads)](
        query.contiguous(), key.contiguous(), q_bias.contiguous(), k_bias.contiguous(), out,
        rows, columns, scale * LOG2E,
        D=head_dim, BD=wide, A=a, B=b, BI=bi, BJ=bj,
        num_warps=4,
    )  # fmt: skip
    return out


def value_error(mass: Tensor, value: Tensor) -> Tensor:
    """Run the kernel; see ``block_value_error``."""
    batch, heads, rows, columns = mass.shape
    head_dim = value.shape[-1]
    value = value.expand(batch, heads, -1, -1)
    kind = torch.bfloat16 if value.is_cuda else torch.float32  # what the interpreter multiplies
    high, middle, low = (torch.empty(value.shape, dtype=kind, device=value.device) for _ in "hml")
    norm = torch.empty(value.shape[:3], dtype=torch.float32, device=value.device)
    out = torch.empty_like(mass)
    wide = max(16, triton.next_power_of_2(head_dim))
    tall, across = (64, 32) if wide <= 128 else (32, 16)
    _split[(batch * heads,)](
        value, high, middle, low, norm, *value.stride(), heads, columns,
        D=head_dim, BD=wide, BJ=across, num_warps=4,
    )  # fmt: skip
    _value_error[(triton.cdiv(rows, tall), batch * heads)](
        mass.contiguous(), high, middle, low, norm, out, rows, columns,
        D=head_dim, BD=wide, BI=tall, BJ=across, num_warps=4,
        num_stages=2,  # three take more shared memory than GPUs before and beside Hopper have
    )  # fmt: skip
    return out
