"""Block-sparse forward in plain Triton: any GPU, any block plan, and Triton's interpreter.

One program attends for one tile of queries: an online softmax, in base 2, over the key tiles of
its list. Pointers and masks only; ``hopper.py`` has the fast path for the GPUs that it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.primitives import LN2, LOG2E, load_rows, shared_strides
from vidsparse.kernels.triton.query_tiles import rows_of_tile, tiles_of_rows

CHUNK, SLOTS = 16, 8  # no tile of keys is narrower than a chunk


@triton.jit
def _attend_tile(
    q, acc, m, l, k_ptr, v_ptr, position, valid, row_valid, words,
    k_s, k_d, v_s, v_d, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, WITH_MARGIN: tl.constexpr, MASK: tl.constexpr,
    ALL: tl.constexpr,
):  # fmt: skip
    """Take the keys at those of the ``[BN]`` positions that are valid into the softmax.

    With ``MASK`` only pairs whose lowest bit of ``words``, ``[BM, BN]``, is set; with ``ALL`` every
    position is valid.
    """
    k = load_rows(k_ptr, position, valid, k_s, k_d, D, BD, ALL)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BM, BN]
    if not ALL:
        s = tl.where(valid[None, :], s, float("-inf"))
    if MASK:
        s = tl.where((words & 1) != 0, s, float("-inf"))
    tile_max = tl.max(s, 1) * scale_log2
    m_new = tl.maximum(m, tile_max)
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s * scale_log2 - m_safe[:, None])
    alpha = tl.exp2(m - m_safe)
    v = load_rows(v_ptr, position, valid, v_s, v_d, D, BD, ALL)
    acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    l = l * alpha + tl.sum(p, 1)
    margin = 0.0
    if WITH_MARGIN:
        # -inf - -inf would be NaN: a tile without keys is below every maximum
        above = tl.where(tile_max == float("-inf"), 0.0, tile_max) - m
        above = tl.where(tile_max == float("-inf"), float("-inf"), above)
        margin = tl.max(tl.where(row_valid, above, float("-inf")), 0) * LN2
    return acc, m_new, l, margin


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, margin_ptr,
    count_ptr, index_ptr, tile_row_ptr, tile_start_ptr, tile_end_ptr,
    whole_ptr, partial_ptr, pattern_ptr, bits_ptr,
    q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d, v_b, v_h, v_s, v_d, o_b, o_h, o_s, o_d,
    count_b, count_h, index_b, index_h, index_m,
    tile_b, tile_h, heads, rows, width, q_len, kv_len, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr,
    HAS_Q_TILES: tl.constexpr, CHUNK: tl.constexpr,
    HAS_LSE: tl.constexpr, WITH_MARGIN: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Attend for one tile of queries of one (batch, head)."""
    tile = tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    row, start, end = rows_of_tile(
        tile, b * tile_b + h * tile_h, tile_row_ptr, tile_start_ptr, tile_end_ptr, q_len,
        BM, Q_BLOCK, HAS_Q_TILES,
    )  # fmt: skip
    if row >= rows:
        return
    position = start + tl.arange(0, BM)
    row_valid = position < end
    q = load_rows(q_ptr + b * q_b + h * q_h, position, row_valid, q_s, q_d, D, BD)

    count = tl.load(count_ptr + b * count_b + h * count_h + row)
    listed = index_ptr + b * index_b + h * index_h + row.to(tl.int64) * index_m
    margin_at = ((b * heads + h) * rows + row) * width
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    column = tl.arange(0, BN)
    if CHUNK > 0:
        STEP: tl.constexpr = BN // CHUNK
        whole = tl.load(whole_ptr + b * count_b + h * count_h + row) // STEP * STEP
        for n in tl.range(0, whole, STEP):
            entry = tl.load(listed + n + column // CHUNK)
            acc, m, l, _ = _attend_tile(
                q, acc, m, l, k_ptr, v_ptr, entry // (2 * CHUNK) + column % CHUNK, True, row_valid,
                0, k_s, k_d, v_s, v_d, scale_log2, D, BD, False, False, True,
            )  # fmt: skip
        for n in tl.range(whole, count, STEP):
            slot = n + column // CHUNK
            entry = tl.load(listed + slot, mask=slot < count, other=0)
            key = entry // (2 * CHUNK) + column % CHUNK
            acc, m, l, margin = _attend_tile(
                q, acc, m, l, k_ptr, v_ptr,
                key, column % CHUNK < entry % (2 * CHUNK), row_valid, 0,
                k_s, k_d, v_s, v_d, scale_log2, D, BD, False, False, False,
            )  # fmt: skip
    else:
        SUBS: tl.constexpr = (KV_BLOCK + BN - 1) // BN
        whole = count
        if PARTIAL:
            whole -= tl.load(partial_ptr + b * count_b + h * count_h + row)
        done = 0
        if KV_BLOCK % BN == 0 and not WITH_MARGIN:
            done = tl.maximum(whole - 1, 0) * SUBS  # the last block alone may be short
            for n in tl.range(0, done):
                key = tl.load(listed + n // SUBS) * KV_BLOCK + (n % SUBS) * BN + column
                acc, m, l, _ = _attend_tile(
                    q, acc, m, l, k_ptr, v_ptr, key, True, row_valid, 0,
                    k_s, k_d, v_s, v_d, scale_log2, D, BD, False, False, True,
                )  # fmt: skip
        for n in tl.range(done, whole * SUBS):
            first = tl.load(listed + n // SUBS) * KV_BLOCK
            key = first + (n % SUBS) * BN + column
            acc, m, l, margin = _attend_tile(
                q, acc, m, l, k_ptr, v_ptr,
                key, key < tl.minimum(first + KV_BLOCK, kv_len), row_valid, 0,
                k_s, k_d, v_s, v_d, scale_log2, D, BD, WITH_MARGIN, False, False,
            )  # fmt: skip
            if WITH_MARGIN:
                tl.store(margin_ptr + margin_at + n, margin)
        if PARTIAL:
            pattern_ptr += b * index_b + h * index_h + row.to(tl.int64) * index_m
            WORDS: tl.constexpr = (KV_BLOCK + 31) // 32
            SHARE: tl.constexpr = BN if BN < 32 else 32  # keys that share a word
            word = tl.arange(0, BN // SHARE)
            bits_ptr += (position - row * Q_BLOCK)[:, None] * WORDS
            for n in tl.range(whole * SUBS, count * SUBS):
                first = tl.load(listed + n // SUBS) * KV_BLOCK
                inside = (n % SUBS) * BN
                key = first + inside + column
                valid = key < tl.minimum(first + KV_BLOCK, kv_len)
                pattern = tl.load(pattern_ptr + n // SUBS) * (Q_BLOCK * WORDS)
                at = inside // 32 + word
                words = tl.load(
                    bits_ptr + pattern + at[None, :],
                    mask=row_valid[:, None] & (at < WORDS)[None, :], other=0,
                )  # fmt: skip
                bit = inside % 32 + tl.arange(0, SHARE)
                words = tl.reshape(words[:, :, None] >> bit[None, None, :], [BM, BN])
                acc, m, l, margin = _attend_tile(
                    q, acc, m, l, k_ptr, v_ptr, key, valid, row_valid, words,
                    k_s, k_d, v_s, v_d, scale_log2, D, BD, False, True, False,
                )  # fmt: skip

    total = tl.where(l > 0, l, 1.0)
    share = tl.where(l > 0, 1.0 / total, 0.0)  # a row without keys is zero
    out = acc * share[:, None]
    dims = tl.arange(0, BD)
    o_at = o_ptr + b * o_b + h * o_h + position.to(tl.int64)[:, None] * o_s + dims[None, :] * o_d
    tl.store(o_at, out.to(o_ptr.dtype.element_ty), mask=row_valid[:, None] & (dims < D)[None, :])
    if HAS_LSE:
        lse = tl.where(l > 0, (m + tl.log2(total)) * LN2, float("-inf"))
        tl.store(lse_ptr + (b * heads + h) * q_len + position, lse, mask=row_valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What the kernel is launched with.

    Attributes:
        keys: Keys in a tile.
        num_warps: Warps of a program.
        num_stages: Key tiles in flight.
    """

    keys: int
    num_warps: int
    num_stages: int

    def config(self) -> triton.Config:
        return triton.Config(
            {"BN": self.keys}, num_warps=self.num_warps, num_stages=self.num_stages
        )


# Which of these wins depends on the GPU, so they are timed there once and the answer is kept on
# disk. On an H200 it was 64 keys with 4 warps, at two stages (blocks of 128) or three (of 64).
CANDIDATES = tuple(
    Tiles(keys=keys, num_warps=warps, num_stages=stages)
    for keys, warps, stages in (
        (128, 8, 2), (64, 8, 3), (64, 4, 3), (64, 4, 2), (64, 4, 1), (32, 4, 2), (16, 4, 2),
    )
)  # fmt: skip


def _that_fit(configs: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    """Candidates whose key tile is no wider than the keys that fill it."""
    widest = max(16, triton.next_power_of_2(constants["KV_BLOCK"]))
    if constants["CHUNK"]:  # a tile is filled from many blocks
        widest = 128
    fit = [config for config in configs if config.kwargs["BN"] <= widest]
    if constants["WITH_MARGIN"]:  # a block must be one tile
        fit = [config for config in fit if config.kwargs["BN"] >= constants["KV_BLOCK"]]
    if constants["BD"] > 128 or arguments["q_ptr"].dtype == torch.float32:
        small = [config for config in fit if config.kwargs["BN"] <= 64]
        fit = small or fit
    return fit


_tuned = triton.autotune(
    configs=[tiles.config() for tiles in CANDIDATES],
    key=["D", "Q_BLOCK", "KV_BLOCK", "CHUNK", "WITH_MARGIN", "PARTIAL"],
    prune_configs_by={"early_config_prune": _that_fit},
    cache_results=True,
)(forward)


class Result(NamedTuple):
    """What a launch wrote; the margin ``(batch, heads, M, K)`` when it was asked for."""

    out: Tensor
    lse: Tensor | None
    margin: Tensor | None


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    scale: float,
    return_lse: bool,
    with_margin: bool = False,
    tiles: Tiles | None = None,
) -> Result:
    """Run the kernel, with the given tiles or the best for this GPU; see ``block_sparse.py``."""
    batch, heads, q_len, head_dim = q.shape
    count, index = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    partial, whole = plan.partial, count
    rows, width = index.shape[2:]
    out = torch.empty_like(q)
    lse = q.new_empty((batch, heads, q_len), dtype=torch.float32) if return_lse else None
    margin = None
    if with_margin:
        margin = q.new_zeros((batch, heads, rows, width), dtype=torch.float32)
    queries = min(64 if head_dim > 128 else 128, max(16, triton.next_power_of_2(plan.q_block)))
    q_tiles = tiles_of_rows(plan, queries)
    if plan.kv_offsets is not None:
        chunks = list_chunks(plan, CHUNK, SLOTS, impl="triton")
        count, index, whole = chunks.count, chunks.index, chunks.whole
    arguments = [
        q, k, v, out, *(out if x is None else x for x in (lse, margin)),
        count, index, *(count if x is None else x for x in q_tiles[:3]),
        whole, *((count,) * 3 if partial is None else partial.contiguous()),
        *(stride for x in (q, k, v, out) for stride in x.stride()),
        *shared_strides(count), *shared_strides(index), index.stride(2),
        *shared_strides(q_tiles.row),
        heads, rows, width, q_len, plan.kv_len, scale * LOG2E,
    ]  # fmt: skip
    constants = {
        "D": head_dim,
        "BD": max(16, triton.next_power_of_2(head_dim)),
        "BM": queries,
        "Q_BLOCK": plan.q_block,
        "KV_BLOCK": plan.kv_block,
        "HAS_Q_TILES": plan.q_offsets is not None,
        "CHUNK": 0 if plan.kv_offsets is None else CHUNK,
        "HAS_LSE": return_lse,
        "WITH_MARGIN": with_margin,
        "PARTIAL": partial is not None,
    }
    grid = (q_tiles.number, batch * heads)
    if tiles is None and q.is_cuda:
        _tuned[grid](*arguments, **constants)
        return Result(out, lse, margin)
    if tiles is None:
        keys = max(16, triton.next_power_of_2(plan.kv_block))
        tiles = Tiles(keys=keys if with_margin else min(64, keys), num_warps=4, num_stages=2)
    forward[grid](*arguments, **constants, **tiles.config().all_kwargs())
    return Result(out, lse, margin)
