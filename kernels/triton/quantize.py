"""Q, K and V in eight bits: a survey of K and V, then one pass that reads and writes everything.

What the formats mean stands in ``kernels/engines/low_bit.py``. The pass gives each program one
block of queries, or one of keys and values. Values are written with their tokens contiguous, as FP8
products want their second operand.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton.primitives import load_rows

QUERIES = 128  # rows in a program
SURVEYED = 512  # tokens in a program of the survey
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
ROUND: tl.constexpr = tl.constexpr(
    12582912.0
)  # 1.5 * 2**23: adding it leaves no bits for a fraction
LEAST: tl.constexpr = tl.constexpr(1e-10)  # no block's largest magnitude is taken for less


@triton.jit
def _survey(
    k_ptr, v_ptr, sum_ptr, most_ptr, kv_end_ptr, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, heads,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Sum of keys and largest magnitude of values, per channel, over a stretch of tokens."""
    bh = tl.program_id(1)
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    kv_end = tl.load(kv_end_ptr + b)
    total = tl.zeros([BD], tl.float32)
    most = tl.zeros([BD], tl.float32)
    for part in tl.range(0, PARTS):
        token = (tl.program_id(0) * PARTS + part) * ROWS + tl.arange(0, ROWS)
        valid = token < kv_end
        k = load_rows(k_ptr + b * k_b + h * k_h, token, valid, k_s, k_d, D, BD)
        v = load_rows(v_ptr + b * v_b + h * v_h, token, valid, v_s, v_d, D, BD)
        total += tl.sum(k.to(tl.float32), 0)
        most = tl.maximum(most, tl.max(tl.abs(v.to(tl.float32)), 0))
    dims = tl.arange(0, BD)
    at = (bh * tl.num_programs(0) + tl.program_id(0)) * D + dims
    tl.store(sum_ptr + at, total, mask=dims < D)
    tl.store(most_ptr + at, most, mask=dims < D)


@triton.jit
def _to_int8(x):
    """The nearest integer, ties to even: the lowest byte of the sum's mantissa."""
    return (x + ROUND).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def to_values(x, dtype: tl.constexpr, BY_HAND: tl.constexpr):
    """To e4m3 or float16, ties to even; ``BY_HAND`` for e4m3 in the interpreter.

    Triton's interpreter drops the carry when a mantissa rounds up to the next power of two.
    """
    if BY_HAND:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        small = (x + 24576.0) - 24576.0  # 1.5 * 2**14: to multiples of 2**-9
        x = tl.where(tl.abs(x) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)


@triton.jit
def _quantize_queries(
    q_ptr, mean, q8_ptr, scale_ptr, shift_ptr, block, q_len, q_s, q_d, scale, dims,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A scale for each row, and what each row's scores lose with the keys' mean."""
    row = block * ROWS + tl.arange(0, ROWS)
    valid = row < q_len
    q = load_rows(q_ptr, row, valid, q_s, q_d, D, BD).to(tl.float32)
    most = tl.maximum(tl.max(tl.abs(q), 1), LEAST)
    q8 = _to_int8(q * tl.div_rn(127.0, most)[:, None])
    at = row[:, None] * D + dims[None, :]
    tl.store(q8_ptr + at, q8, mask=valid[:, None] & (dims < D)[None, :])
    tl.store(scale_ptr + row, most * (scale * LOG2E / 127), mask=valid)
    tl.store(shift_ptr + row, tl.sum(q * mean[None, :], 1) * scale, mask=valid)


@triton.jit
def _quantize_keys(
    k_ptr, mean, k8_ptr, scale_ptr, block, kv_end, kv_len, k_s, k_d, dims,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A scale for the block; keys that do not exist become zero."""
    token = block * BLOCK + tl.arange(0, BLOCK)
    valid = token < kv_end
    k = load_rows(k_ptr, token, valid, k_s, k_d, D, BD).to(tl.float32)
    k = tl.where(valid[:, None], k - mean[None, :], 0.0)
    most = tl.maximum(tl.max(tl.max(tl.abs(k), 1), 0), LEAST)
    k8 = _to_int8(k * tl.div_rn(127.0, most))
    at = token[:, None] * D + dims[None, :]
    tl.store(k8_ptr + at, k8, mask=(token < kv_len)[:, None] & (dims < D)[None, :])
    tl.store(scale_ptr + block, most / 127)


@triton.jit
def _quantize_values(
    v_ptr, most, v8_ptr, block, kv_end, width, v_s, v_d, v8_s, v8_d, dims,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
    BY_HAND: tl.constexpr,
):  # fmt: skip
    """A scale for each channel, from the survey; zero up to ``width``."""
    slot = tl.arange(0, BLOCK)
    token = slot
    if INTERLEAVED:  # slot 4 t + 2 a + c of 16 holds token 8 a + 2 t + c
        token = (slot // 16) * 16 + (slot // 2) % 2 * 8 + (slot // 4) % 4 * 2 + slot % 2
    token += block * BLOCK
    v = load_rows(v_ptr, token, token < kv_end, v_s, v_d, D, BD).to(tl.float32)
    v8 = to_values(
        v * tl.div_rn(448.0, tl.maximum(most, LEAST))[None, :], v8_ptr.dtype.element_ty, BY_HAND
    )
    slot += block * BLOCK
    at = slot[:, None] * v8_s + dims[None, :] * v8_d
    tl.store(v8_ptr + at, v8, mask=(slot < width)[:, None] & (dims < D)[None, :])


@triton.jit
def _quantize(
    q_ptr, k_ptr, v_ptr, mean_ptr, most_ptr, kv_end_ptr,
    q8_ptr, q_scale_ptr, shift_ptr, k8_ptr, k_scale_ptr, v8_ptr,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d,
    heads, q_len, kv_len, q_blocks, kv_blocks, width, v8_s, v8_d, scale,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr, BY_HAND: tl.constexpr,
):  # fmt: skip
    """One block of queries, of keys, or of values, in turn."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    dims = tl.arange(0, BD)
    kv_end = tl.load(kv_end_ptr + b)
    block = tl.program_id(0)
    if block < q_blocks:
        mean = tl.load(mean_ptr + bh * D + dims, mask=dims < D, other=0.0)
        _quantize_queries(
            q_ptr + b * q_b + h * q_h, mean, q8_ptr + bh * q_len * D, q_scale_ptr + bh * q_len,
            shift_ptr + bh * q_len, block, q_len, q_s, q_d, scale, dims, D, BD, ROWS,
        )  # fmt: skip
    elif block < q_blocks + kv_blocks:
        mean = tl.load(mean_ptr + bh * D + dims, mask=dims < D, other=0.0)
        _quantize_keys(
            k_ptr + b * k_b + h * k_h, mean, k8_ptr + bh * kv_len * D,
            k_scale_ptr + bh * kv_blocks, block - q_blocks, kv_end, kv_len, k_s, k_d, dims,
            D, BD, BLOCK,
        )  # fmt: skip
    else:
        most = tl.load(most_ptr + bh * D + dims, mask=dims < D, other=1.0)
        _quantize_values(
            v_ptr + b * v_b + h * v_h, most, v8_ptr + bh * width * D,
            block - q_blocks - kv_blocks, kv_end, width, v_s, v_d, v8_s, v8_d, dims,
            D, BD, BLOCK, INTERLEAVED, BY_HAND,
        )  # fmt: skip


def by_hand(dtype: torch.dtype) -> bool:
    """Whether a kernel must round to this dtype itself; see ``to_values``."""
    return triton.knobs.runtime.interpret and dtype == torch.float8_e4m3fn


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    block: int,
    value_dtype: torch.dtype,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    """Run both kernels; see ``quantize`` in ``kernels/engines/low_bit.py``."""
    batch, heads, q_len, head_dim = q.shape
    kv_len, device = k.shape[2], q.device
    kv_end = torch.full((batch,), kv_len, dtype=torch.int32, device=device)
    q_blocks, kv_blocks = triton.cdiv(q_len, QUERIES), triton.cdiv(kv_len, block)
    width = kv_blocks * block

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((batch, heads, *shape), dtype=dtype, device=device)

    wide = max(16, triton.next_power_of_2(head_dim))
    parts = triton.cdiv(kv_len, SURVEYED)
    sums, most = empty(parts, head_dim), empty(parts, head_dim)
    _survey[(parts, batch * heads)](
        k, v, sums, most, kv_end, *k.stride(), *v.stride(), heads,
        D=head_dim, BD=wide, ROWS=64, PARTS=SURVEYED // 64, num_warps=4,
    )  # fmt: skip
    mean = sums.sum(dim=2) / kv_len
    most = most.amax(dim=2)
    q8, k8 = empty(q_len, head_dim, dtype=torch.int8), empty(kv_len, head_dim, dtype=torch.int8)
    q_scale, shift, k_scale = empty(q_len), empty(q_len), empty(kv_blocks)
    transposed = value_dtype.itemsize == 1
    value = empty(*((head_dim, width) if transposed else (width, head_dim)), dtype=value_dtype)
    value = value.mT if transposed else value
    _quantize[(q_blocks + 2 * kv_blocks, batch * heads)](
        q, k, v, mean, most, kv_end, q8, q_scale, shift, k8, k_scale, value,
        *q.stride(), *k.stride(), *v.stride(),
        heads, q_len, kv_len, q_blocks, kv_blocks, width, *value.stride()[2:], scale,
        D=head_dim, BD=wide, ROWS=QUERIES, BLOCK=block, INTERLEAVED=interleaved,
        BY_HAND=by_hand(value_dtype),
        num_warps=8,
    )  # fmt: skip
    return q8, q_scale, shift, k8, k_scale, value, most.clamp(min=1e-10) / 448
