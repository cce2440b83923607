"""Q, K and V in eight bits: a survey of K and V, then one pass that reads and writes everything.

What the formats mean stands in ``kernels/engines/low_bit.py``. The pass gives each program one
block of queries, or one of keys and values. Values are written with their tokens contiguous, as FP8
products want their second operand: all of them, or 16 at a time in panels, which lie swizzled as
TMA unswizzles them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import Pooled
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
    k_ptr, v_ptr, sum_ptr, least_ptr, most_ptr, kv_end_ptr,
    k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, heads,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    ONE_SCALE: tl.constexpr,
):  # fmt: skip
    """Sum of keys and largest magnitude of values, per channel, over a stretch of tokens.

    With ``ONE_SCALE`` also the least key and the least negated one.
    """
    bh = tl.program_id(1)
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    kv_end = tl.load(kv_end_ptr + b)
    total = tl.zeros([ROWS, BD], tl.float32)
    most = tl.zeros([ROWS, BD], tl.float32)
    low, high = total + float("inf"), total - float("inf")
    for part in tl.range(0, PARTS):
        token = (tl.program_id(0) * PARTS + part) * ROWS + tl.arange(0, ROWS)
        valid = token < kv_end
        token = tl.minimum(token, kv_end - 1)  # twice the last changes no extreme
        k = load_rows(k_ptr + b * k_b + h * k_h, token, valid, k_s, k_d, D, BD, True)
        v = load_rows(v_ptr + b * v_b + h * v_h, token, valid, v_s, v_d, D, BD, True)
        total += tl.where(valid[:, None], k.to(tl.float32), 0.0)
        most = tl.maximum(most, tl.abs(v).to(tl.float32))
        if ONE_SCALE:
            low = tl.minimum(low, k.to(tl.float32))
            high = tl.maximum(high, k.to(tl.float32))
    dims = tl.arange(0, BD)
    at = (bh * tl.num_programs(0) + tl.program_id(0)) * D + dims
    tl.store(sum_ptr + at, tl.sum(total, 0), mask=dims < D)
    tl.store(most_ptr + at, tl.max(most, 0), mask=dims < D)
    if ONE_SCALE:
        tl.store(least_ptr + at * 2, tl.min(low, 0), mask=dims < D)
        tl.store(least_ptr + at * 2 + 1, -tl.max(high, 0), mask=dims < D)


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
    q_ptr, mean, q8_ptr, scale_ptr, shift_ptr, least, block, q_len, q_s, q_d, scale, dims,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A scale for each row, and what each row's scores lose with the keys' mean."""
    row = block * ROWS + tl.arange(0, ROWS)
    valid = row < q_len
    q = load_rows(q_ptr, row, valid, q_s, q_d, D, BD).to(tl.float32)
    most = tl.maximum(tl.max(tl.abs(q), 1), least)
    q8 = _to_int8(q * tl.div_rn(127.0, most)[:, None])
    at = row[:, None] * D + dims[None, :]
    tl.store(q8_ptr + at, q8, mask=valid[:, None] & (dims < D)[None, :])
    tl.store(scale_ptr + row, most * (scale * LOG2E / 127), mask=valid)
    tl.store(shift_ptr + row, tl.sum(q * mean[None, :], 1) * scale, mask=valid)


@triton.jit
def _quantize_keys(
    k_ptr, mean, k8_ptr, scale_ptr, block, kv_end, kv_len, k_s, k_d, dims,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, ONE_SCALE: tl.constexpr,
):  # fmt: skip
    """A scale for the block, or the head's; keys that do not exist become zero."""
    token = block * BLOCK + tl.arange(0, BLOCK)
    valid = token < kv_end
    k = load_rows(k_ptr, token, valid, k_s, k_d, D, BD).to(tl.float32)
    k = tl.where(valid[:, None], k - mean[None, :], 0.0)
    if ONE_SCALE:
        most = tl.load(scale_ptr)
    else:
        most = tl.maximum(tl.max(tl.max(tl.abs(k), 1), 0), LEAST)
        tl.store(scale_ptr + block, most / 127)
    k8 = _to_int8(k * tl.div_rn(127.0, most))
    at = token[:, None] * D + dims[None, :]
    tl.store(k8_ptr + at, k8, mask=(token < kv_len)[:, None] & (dims < D)[None, :])


@triton.jit
def _quantize_values(
    v_ptr, most, v8_ptr, block, kv_end, width, v_s, v_d, v8_s, v8_d, dims,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, LAYOUT: tl.constexpr,
    BY_HAND: tl.constexpr,
):  # fmt: skip
    """A scale for each channel, from the survey; zero up to ``width``."""
    slot = tl.arange(0, BLOCK)
    token = slot
    if LAYOUT != "plain":  # slot 4 t + 2 a + c of 16 holds token 8 a + 2 t + c
        token = (slot // 16) * 16 + (slot // 2) % 2 * 8 + (slot // 4) % 4 * 2 + slot % 2
    token += block * BLOCK
    v = load_rows(v_ptr, token, token < kv_end, v_s, v_d, D, BD).to(tl.float32)
    v8 = to_values(v * tl.div_rn(448.0, most)[None, :], v8_ptr.dtype.element_ty, BY_HAND)
    slot += block * BLOCK
    if LAYOUT == "panels":  # BD channels, whose rows TMA swizzles
        v8 = tl.permute(tl.reshape(v8, [BLOCK // 16, 16, BD]), [0, 2, 1])
        channel = dims * 16
        channel = tl.multiple_of(channel ^ ((channel >> 7) % (BD // 16) << 4), 16)
        panel = block * (BLOCK // 16) + tl.arange(0, BLOCK // 16)
        at = panel[:, None, None] * (16 * BD) + channel[None, :, None]
        at = at + tl.arange(0, 16)[None, None, :]
        tl.store(v8_ptr + at, v8, mask=(panel * 16 < width)[:, None, None])
    else:
        at = slot[:, None] * v8_s + dims[None, :] * v8_d
        tl.store(v8_ptr + at, v8, mask=(slot < width)[:, None] & (dims < D)[None, :])


@triton.jit
def _quantize(
    q_ptr, k_ptr, v_ptr, mean_ptr, most_ptr, kv_end_ptr,
    q8_ptr, q_scale_ptr, shift_ptr, k8_ptr, k_scale_ptr, v8_ptr,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d,
    heads, q_len, kv_len, q_blocks, kv_blocks, width, wide, v8_s, v8_d, scale, floor,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ONE_SCALE: tl.constexpr, LAYOUT: tl.constexpr, BY_HAND: tl.constexpr,
):  # fmt: skip
    """One block of queries, of keys, or of values, in turn."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    dims = tl.arange(0, BD)
    kv_end = tl.load(kv_end_ptr + b)
    block = tl.program_id(0)
    if block < q_blocks:
        mean = tl.load(mean_ptr + bh * D + dims, mask=dims < D, other=0.0)
        least = LEAST
        if ONE_SCALE:
            unit = tl.load(k_scale_ptr + bh) * scale * (LOG2E / 16129)  # of a query of one
            least = tl.maximum(tl.div_rn(1.0, unit) * floor, LEAST)
        _quantize_queries(
            q_ptr + b * q_b + h * q_h, mean, q8_ptr + bh * q_len * D, q_scale_ptr + bh * q_len,
            shift_ptr + bh * q_len, least, block, q_len, q_s, q_d, scale, dims, D, BD, ROWS,
        )  # fmt: skip
    elif block < q_blocks + kv_blocks:
        mean = tl.load(mean_ptr + bh * D + dims, mask=dims < D, other=0.0)
        _quantize_keys(
            k_ptr + b * k_b + h * k_h, mean, k8_ptr + bh * kv_len * D,
            k_scale_ptr + bh * (1 if ONE_SCALE else kv_blocks), block - q_blocks, kv_end, kv_len,
            k_s, k_d, dims, D, BD, BLOCK, ONE_SCALE,
        )  # fmt: skip
    else:
        most = tl.load(most_ptr + bh * D + dims, mask=dims < D, other=1.0)
        _quantize_values(
            v_ptr + b * v_b + h * v_h, most, v8_ptr + bh * width * wide,
            block - q_blocks - kv_blocks, kv_end, width, v_s, v_d, v8_s, v8_d, dims,
            D, BD, BLOCK, LAYOUT, BY_HAND,
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
    block: int | None,
    value_dtype: torch.dtype,
    layout: str,
    pooled: Pooled | None,
    floor: float,
) -> tuple[Any, ...]:
    """Run both kernels; see ``quantize`` in ``kernels/engines/low_bit.py``."""
    mean, most_key, most = _surveyed(k, v, pooled, one_scale=block is None)
    q_len, head_dim = q.shape[2:]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((*q.shape[:2], *shape), dtype=dtype, device=q.device)

    q8, q_scale, shift = empty(q_len, head_dim, dtype=torch.int8), empty(q_len), empty(q_len)
    wide = max(16, triton.next_power_of_2(head_dim))
    if layout == "panels":
        wide = max(64, wide)

    def pass_over(k: Tensor, v: Tensor, q_blocks: int) -> tuple[Tensor, Tensor, Tensor]:
        kv_len, rows = k.shape[2], block or 128
        kv_blocks = triton.cdiv(kv_len, rows)
        width = kv_blocks * rows
        k8 = empty(kv_len, head_dim, dtype=torch.int8)
        k_scale = empty(kv_blocks) if most_key is None else most_key
        if layout == "panels":
            value = empty(width, wide, dtype=value_dtype)
        elif value_dtype.itemsize == 1:
            value = empty(head_dim, width, dtype=value_dtype).mT
        else:
            value = empty(width, head_dim, dtype=value_dtype)
        kv_end = torch.full((q.shape[0],), kv_len, dtype=torch.int32, device=q.device)
        _quantize[(q_blocks + 2 * kv_blocks, q.shape[0] * q.shape[1])](
            q, k, v, mean, most, kv_end, q8, q_scale, shift, k8, k_scale, value,
            *q.stride(), *k.stride(), *v.stride(), q.shape[1], q_len, kv_len, q_blocks, kv_blocks,
            width, value.shape[3], *value.stride()[2:], scale, floor,
            D=head_dim, BD=wide, ROWS=QUERIES, BLOCK=rows, ONE_SCALE=block is None, LAYOUT=layout,
            BY_HAND=by_hand(value_dtype), num_warps=8,
        )  # fmt: skip
        return k8, k_scale, value

    k8, k_scale, value = pass_over(k, v, triton.cdiv(q_len, QUERIES))
    k_scale = k_scale if most_key is None else most_key / 127
    means = (None, None)
    if pooled is not None:
        means = (x.expand(*q.shape[:2], -1, -1) for x in (pooled.key, pooled.value))
        means = pass_over(*means, 0)[::2]
    return q8, q_scale, shift, k8, k_scale, value, most / 448, means


def _surveyed(
    k: Tensor, v: Tensor, pooled: Pooled | None, *, one_scale: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Mean of keys, largest magnitude of all keys less it if asked, and of each channel's values.

    Float32 ``(batch, heads, head_dim)``, ``(batch, heads, 1)`` or None, and as the first.
    """
    batch, heads, kv_len, head_dim = k.shape
    parts = triton.cdiv(kv_len, SURVEYED)
    kv_end = torch.full((batch,), kv_len, dtype=torch.int32, device=k.device)
    sums, most = torch.empty(
        (2, batch, heads, parts, head_dim), dtype=torch.float32, device=k.device
    )
    least = most.new_empty((batch, heads, parts, head_dim, 2)) if one_scale else most
    _survey[(parts, batch * heads)](
        k, v, sums, least, most, kv_end, *k.stride(), *v.stride(), heads,
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), ROWS=32, PARTS=SURVEYED // 32,
        ONE_SCALE=one_scale, num_warps=8,
    )  # fmt: skip
    mean, most = sums.sum(dim=2) / kv_len, most.amax(dim=2)
    if not one_scale:
        return mean, None, most.clamp(min=LEAST.value)
    low, high = least.amin(dim=2).unbind(dim=-1)
    most_key = torch.maximum(mean - low, -high - mean).amax(dim=-1, keepdim=True)
    if pooled is not None:
        means = (pooled.key.float() - mean[:, :, None]).abs().amax(dim=(2, 3))
        most_key = torch.maximum(most_key, means[..., None])
        most = torch.maximum(most, pooled.value.abs().amax(dim=2))
    return mean, most_key.clamp(min=LEAST.value), most.clamp(min=LEAST.value)
