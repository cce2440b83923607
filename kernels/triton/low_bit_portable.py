"""Block-sparse forward in eight bits in plain Triton: INT8 scores, and values as the card has them.

One program attends for one tile of queries. The keys of its list lie end to end, in tiles of
``KEYS`` columns from the last to the first, so that key blocks of any size fill whole tiles and
weights round as in ``low_bit_hopper.py``. Pointers and masks only; runs in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.engines.low_bit import Quantized
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.portable import rows_of_tile
from vidsparse.kernels.triton.primitives import LN2, load_rows, shared_strides
from vidsparse.kernels.triton.quantize import by_hand, to_values
from vidsparse.kernels.triton.query_tiles import tiles_of_rows

TAKES_POOLED, LAYOUT = False, "plain"
CHUNK, SLOTS = 16, 8
LOG2_448: tl.constexpr = tl.constexpr(8.807354922057604)


@triton.jit
def _listed_keys(
    listed, count, kv_end, first, KEYS: tl.constexpr, KV: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Keys in the ``KEYS`` columns from ``first`` on of a list, and which of them exist."""
    column = first + tl.arange(0, KEYS)
    if CHUNK > 0:
        slot = column // CHUNK
        entry = tl.load(listed + slot, mask=slot < count, other=0)
        key = entry // (2 * CHUNK) + column % CHUNK
        valid = column % CHUNK < entry % (2 * CHUNK)
    else:
        slot = column // KV
        key = tl.load(listed + slot, mask=slot < count, other=0) * KV + column % KV
        valid = (slot < count) & (key < kv_end)
    return key, valid


@triton.jit
def _take(
    q, row_scale, acc, m, l, listed, count, kv_end, first, k_ptr, v_ptr, k_scale_ptr, v_s, v_d,
    D: tl.constexpr, BD: tl.constexpr, KEYS: tl.constexpr, KV: tl.constexpr, K_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, BY_HAND: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Take the keys of a tile into the softmax; with ``ALL`` every column is one."""
    ONE: tl.constexpr = ALL and CHUNK == 0 and KV % KEYS == 0  # block, its keys side by side
    if ONE:
        at = tl.load(listed + first // KV) * KV + first % KV
        # said again, since what a loop hands from one round to the next loses it
        key = tl.max_contiguous(tl.multiple_of(at + tl.arange(0, KEYS), KEYS), KEYS)
        valid = True
    else:
        key, valid = _listed_keys(listed, count, kv_end, first, KEYS, KV, CHUNK)
    k = load_rows(k_ptr, key, valid, D, 1, D, BD, ALL)
    s = tl.dot(q, tl.trans(k), out_dtype=tl.int32).to(tl.float32)  # [BM, KEYS]
    if K_BLOCK == 0:  # one scale
        s = s * (row_scale * tl.load(k_scale_ptr))[:, None]
    elif ONE and K_BLOCK % KEYS == 0:
        s = s * (row_scale * tl.load(k_scale_ptr + at // K_BLOCK))[:, None]
    elif ALL:
        s = s * (row_scale[:, None] * tl.load(k_scale_ptr + key // K_BLOCK)[None, :])
    else:
        k_scale = tl.load(k_scale_ptr + key // K_BLOCK, mask=valid, other=1.0)
        s = s * (row_scale[:, None] * k_scale[None, :])
    if not ALL:
        s = tl.where(valid[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - (m_safe - LOG2_448)[:, None])
    alpha = tl.exp2(m - m_safe)
    l = l * alpha + tl.sum(p, 1)
    p = to_values(tl.minimum(p, 448.0), v_ptr.dtype.element_ty, BY_HAND)
    v = load_rows(v_ptr, key, valid, v_s, v_d, D, BD, ALL)
    # named, so that the sum of a tile is not made within the accumulator of all tiles
    part = tl.dot(p, v, max_num_imprecise_acc=KEYS)
    return acc * alpha[:, None] + part, m_new, l


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr,
    count_ptr, index_ptr, whole_ptr, kv_end_ptr, tile_row_ptr, tile_start_ptr, tile_end_ptr,
    o_b, o_h, o_s, o_d, v_s, v_d,
    count_b, count_h, index_b, index_h, index_m, tile_b, tile_h,
    heads, rows, q_len, kv_len, v_len, k_blocks,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, KEYS: tl.constexpr,
    Q_BLOCK: tl.constexpr, KV: tl.constexpr, K_BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    HAS_Q_TILES: tl.constexpr, HAS_LSE: tl.constexpr, BY_HAND: tl.constexpr,
):  # fmt: skip
    """Attend for one tile of queries of one (batch, head)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    row, start, end = rows_of_tile(
        tl.program_id(0), b * tile_b + h * tile_h, tile_row_ptr, tile_start_ptr, tile_end_ptr,
        q_len, BM, Q_BLOCK, HAS_Q_TILES,
    )  # fmt: skip
    if row >= rows:
        return
    token = start + tl.arange(0, BM)
    row_valid = token < end
    q = load_rows(q_ptr + bh * q_len * D, token, row_valid, D, 1, D, BD)
    row_scale = tl.load(q_scale_ptr + bh * q_len + token, mask=row_valid, other=1.0)
    count = tl.load(count_ptr + b * count_b + h * count_h + row)
    listed = index_ptr + b * index_b + h * index_h + row.to(tl.int64) * index_m
    kv_end = tl.load(kv_end_ptr + b)
    k_ptr += bh * kv_len * D
    v_ptr += bh * v_len * D
    k_scale_ptr += bh * k_blocks
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    SPAN: tl.constexpr = CHUNK if CHUNK > 0 else KV
    number = (count * SPAN + KEYS - 1) // KEYS
    # tiles that hold what is short: chunks from the first short one on, or the last block
    if CHUNK > 0:
        whole = tl.load(whole_ptr + b * count_b + h * count_h + row) * CHUNK // KEYS
        short = tl.maximum(number - whole, 0)
    elif KV % KEYS == 0:
        short = tl.minimum(KV // KEYS, number)
    else:
        short = number
    for n in tl.range(0, short):
        acc, m, l = _take(
            q, row_scale, acc, m, l, listed, count, kv_end, (number - 1 - n) * KEYS,
            k_ptr, v_ptr, k_scale_ptr, v_s, v_d, D, BD, KEYS, KV, K_BLOCK, CHUNK, BY_HAND, False,
        )  # fmt: skip
    for n in tl.range(short, number):
        acc, m, l = _take(
            q, row_scale, acc, m, l, listed, count, kv_end, (number - 1 - n) * KEYS,
            k_ptr, v_ptr, k_scale_ptr, v_s, v_d, D, BD, KEYS, KV, K_BLOCK, CHUNK, BY_HAND, True,
        )  # fmt: skip

    safe = tl.where(l > 0, l, 1.0)
    share = tl.where(l > 0, 1.0 / safe, 0.0)  # a row without keys is zero
    dims = tl.arange(0, BD)
    inside = dims < D
    v_scale = tl.load(v_scale_ptr + bh * D + dims, mask=inside, other=0.0)
    out = acc * share[:, None] * v_scale[None, :]
    o_at = o_ptr + b * o_b + h * o_h + token.to(tl.int64)[:, None] * o_s + dims[None, :] * o_d
    tl.store(o_at, out.to(o_ptr.dtype.element_ty), mask=row_valid[:, None] & inside[None, :])
    if HAS_LSE:
        shift = tl.load(shift_ptr + bh * q_len + token, mask=row_valid, other=0.0)
        lse = (m - LOG2_448 + tl.log2(safe)) * LN2 + shift
        lse = tl.where(l > 0, lse, float("-inf"))
        tl.store(lse_ptr + bh * q_len + token, lse, mask=row_valid)


def launch(
    x: Quantized,
    plan: BlockPlan,
    out: Tensor,
    *,
    return_lse: bool,
    keys: int = 64,
    num_warps: int | None = None,
    num_stages: int = 2,
) -> Tensor | None:
    """Attend into ``out`` and return the log-sum-exp.

    Args:
        x: Plain.
        plan: What to compute, stand-ins apart.
        out: ``(batch, heads, q_len, head_dim)``, any strides.
        return_lse: Whether to return the log-sum-exp.
        keys: In a tile.
        num_warps: Of a program; as many as keep it from spilling when None.
        num_stages: Key tiles in flight.
    """
    batch, heads, q_len, head_dim = x.query.shape
    lse = x.shift.new_empty((batch, heads, q_len)) if return_lse else None
    queries = min(64 if head_dim > 128 else 128, max(16, triton.next_power_of_2(plan.q_block)))
    if num_warps is None:
        num_warps = 8 if queries * head_dim > 8192 else 4
    q_tiles = tiles_of_rows(plan, queries)
    kv_end = torch.full((batch,), plan.kv_len, dtype=torch.int32, device=out.device)
    count, index = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    whole = count
    if plan.kv_offsets is not None:
        chunks = list_chunks(plan, CHUNK, SLOTS, impl="triton")
        count, index, whole = chunks.count, chunks.index, chunks.whole
    forward[(q_tiles.number, batch * heads)](
        x.query, x.key, x.value, out, x.shift if lse is None else lse,
        x.query_scale, x.key_scale, x.value_scale, x.shift,
        count, index, whole, kv_end,
        *(count if t is None else t for t in q_tiles[:3]),
        *out.stride(), *x.value.stride()[2:],
        *shared_strides(count), *shared_strides(index), index.stride(2),
        *shared_strides(q_tiles.row),
        heads, plan.num_q_blocks, q_len, plan.kv_len, x.value.shape[2], x.key_scale.shape[-1],
        D=head_dim, BD=max(16, triton.next_power_of_2(head_dim)), BM=queries, KEYS=keys,
        Q_BLOCK=plan.q_block, KV=plan.kv_block, K_BLOCK=x.key_block or 0,
        CHUNK=0 if plan.kv_offsets is None else CHUNK,
        HAS_Q_TILES=q_tiles.row is not None, HAS_LSE=return_lse,
        BY_HAND=by_hand(x.value.dtype), num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return lse
