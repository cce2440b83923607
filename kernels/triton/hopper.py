"""Block-sparse forward for Hopper (sm_90) in Gluon: one producer warp, one or two consumers.

A program stays on its multiprocessor and takes query tiles in turn (``turns.py``). The producer
copies the listed keys and values into a ring of shared-memory stages through TMA; each consumer is
a warpgroup with 64 query rows, and issues the scores of the next tile and the output of this one
together, so that the tensor cores have work while the other consumer is at its softmax.

The keys a query tile reads are laid end to end: ``width`` columns in tiles of ``BN``, so that key
blocks of any multiple of 16 fill whole tiles. Only the last tile can be ragged; it goes first,
masked, and the loop over the others has no mask.

Partial blocks stand last in a list, so tiles with one come first too, in a loop of their own. Each
thread reads its bits (``hopper_masks.py``) a tile ahead.

Where blocks are observed a tile is a block, in the order of its list, so that any may be the ragged
one. Each warp writes its own largest lead of a tile: no warp waits for another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse.kernels.plan import BlockPlan, Partial
from vidsparse.kernels.triton.hopper_masks import UNSEEN, masked, pattern_of, words_of
from vidsparse.kernels.triton.hopper_rows import (
    over_rows,
    paired,
    row_max,
    row_sums,
    thread_sums,
    weights_of,
)
from vidsparse.kernels.triton.primitives import LOG2E, first_unmet, shared_strides
from vidsparse.kernels.triton.ring import phase_of, stage_of
from vidsparse.kernels.triton.tma import descriptor, suits_tma
from vidsparse.kernels.triton.turns import allocate, counter, draw, hear, tell

TAKES_POOLED = False
INTEGERS = (
    "count_b", "count_h", "index_b", "index_h", "index_m",
    "tiles", "tiles_per_head", "heads", "q_len", "kv_len", "most",
)  # fmt: skip


@gluon.jit
def _work(
    t, lists, heads, tiles_per_head, ROW_TILES: gl.constexpr, KV: gl.constexpr, BN: gl.constexpr
):
    """Where query tile ``t`` lies, its list, and how many key columns that makes."""
    count_ptr, index_ptr, kv_len, count_b, count_h, index_b, index_h, index_m = lists
    i = t % tiles_per_head
    bh = t // tiles_per_head
    b = bh // heads
    h = bh % heads
    row = i // ROW_TILES
    count = gl.load(count_ptr + b * count_b + h * count_h + row)
    start = b.to(gl.int64) * index_b + h.to(gl.int64) * index_h + row.to(gl.int64) * index_m
    last = gl.load(index_ptr + start + gl.maximum(count - 1, 0))
    width = (count - 1) * KV + gl.minimum(KV, kv_len - last * KV)
    width = gl.maximum(width, 0)
    num_tiles = gl.maximum((width + BN - 1) // BN, 1)  # a row without keys reads one, masked
    return i, b, h, index_ptr + start, count, width, num_tiles


@gluon.jit
def _produce(
    qd, kd, vd, lists, sizes, turns, counter_ptr, qs, ks, vs, bars,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr,
    STAGES: gl.constexpr, CONSUMERS: gl.constexpr, OBSERVE: gl.constexpr,
):  # fmt: skip
    """Copy what the consumers will read, a few stages ahead of them."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    tiles, tiles_per_head, heads, _q_len = sizes
    SLOTS: gl.constexpr = BN // SLOT
    SUBS: gl.constexpr = KV // SLOT
    step = 0
    done = 0
    t = gl.program_id(0)
    while t < tiles:
        t_next = draw(counter_ptr)
        i, b, h, listed, count, _width, num_tiles = _work(
            t, lists, heads, tiles_per_head, ROW_TILES, KV, BN
        )
        for w in gl.static_range(CONSUMERS):
            # a barrier starts in phase 0: waiting for the other phase passes at once the first time
            mbarrier.wait(q_empty.index(w), (done & 1) ^ 1)
            mbarrier.expect(q_full.index(w), qd.block_type.nbytes)
            row = (i * CONSUMERS + w) * 64
            tma.async_copy_global_to_shared(qd, [b, h, row, 0], q_full.index(w), qs.index(w))
        tell(turns, done + 1, t_next)
        # slots behind the list copy its last block again: masked, but memory that is there
        last_slot = gl.maximum(count * SUBS - 1, 0)
        for n in range(num_tiles):
            tile = n if OBSERVE else num_tiles - 1 - n
            stage = stage_of(step, STAGES)
            phase = phase_of(step, STAGES)
            mbarrier.wait(k_empty.index(stage), phase ^ 1)
            mbarrier.expect(k_full.index(stage), SLOTS * kd.block_type.nbytes)
            for x in gl.static_range(SLOTS):
                slot = gl.minimum(tile * SLOTS + x, last_slot)
                key = gl.load(listed + slot // SUBS) * KV + (slot % SUBS) * SLOT
                to = ks.index(stage).slice(x * SLOT, SLOT, dim=2)
                tma.async_copy_global_to_shared(kd, [b, h, key, 0], k_full.index(stage), to)
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            mbarrier.expect(v_full.index(stage), SLOTS * vd.block_type.nbytes)
            for x in gl.static_range(SLOTS):
                slot = gl.minimum(tile * SLOTS + x, last_slot)
                key = gl.load(listed + slot // SUBS) * KV + (slot % SUBS) * SLOT
                to = vs.index(stage).slice(x * SLOT, SLOT, dim=2)
                tma.async_copy_global_to_shared(vd, [b, h, key, 0], v_full.index(stage), to)
            step += 1
        t = t_next
        done += 1


@gluon.jit
def _write_lead(at, lead, exists, first: gl.constexpr):
    """Each warp's largest over its 16 rows, four numbers."""
    lead = gl.where(exists, lead, float("-inf"))
    lead = gl.max(lead.reshape([4, 16]), 1) * 0.6931471805599453
    gl.store(at + first + gl.arange(0, 4, lead.type.layout), lead)


@gluon.jit
def _bits_of(bits, tile, pattern, count, MASKED: gl.constexpr, BN: gl.constexpr, KV: gl.constexpr,
             Q_BLOCK: gl.constexpr):  # fmt: skip
    """The bits of a tile, whose pattern is known, and the pattern of the tile that comes next."""
    patterns, bits_ptr, first = bits
    tile = gl.maximum(tile, 0)
    words = words_of(bits_ptr, pattern, tile, first, MASKED, BN, KV, Q_BLOCK)
    return words, pattern_of(patterns, gl.maximum(tile - 1, 0), count, MASKED, BN, KV)


@gluon.jit
def _step(
    n, step, end, later, m, l, acc, pairs,
    q, blank, column, exists, listed, kv_len, num_tiles, margin_ptr, words,
    ks, vs, bars, scale_log2,
    BN: gl.constexpr, KV: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr, W: gl.constexpr, OBSERVE: gl.constexpr, PARTIAL: gl.constexpr,
    MASKED: gl.constexpr, OUT: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """Scores of the ``n``-th tile, and the output of the one before."""
    _q_full, _q_empty, k_full, k_empty, v_full, v_empty = bars
    weights = weights_of(pairs, DTYPE, gl.DotOperandLayout(0, OUT, 2))
    if OBSERVE:
        end = later
        later = kv_len - gl.load(listed + gl.minimum(n + 1, num_tiles - 1)) * KV
    now = stage_of(step, STAGES)
    after = stage_of(step + 1, STAGES)
    mbarrier.wait(k_full.index(after), phase_of(step + 1, STAGES))
    k = ks.index(after).reshape([BN, D]).permute((1, 0))
    s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(now), phase_of(step, STAGES))
    v = vs.index(now).reshape([BN, D])
    acc = warpgroup_mma(weights, v, acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=(s,))  # scores are there, the output is still under way
    mbarrier.arrive(k_empty.index(after), count=1)

    if OBSERVE:  # noqa: SIM102 (a branch that is compiled only where blocks are observed)
        if end < BN:
            s = gl.where(gl.expand_dims(column, 0) < end, s, float("-inf"))
    if PARTIAL:
        s = masked(s, words, MASKED)
    highest = row_max(s) * scale_log2
    if OBSERVE:
        _write_lead(margin_ptr + n * (4 * CONSUMERS), highest - m, exists, 4 * W)
    m_new = gl.maximum(m, highest)
    alpha = gl.exp2(m - m_new)
    p = gl.exp2(s * scale_log2 - gl.expand_dims(m_new, 1))
    l = l * over_rows(alpha, l) + thread_sums(p)

    # weights are overwritten and acc is scaled only once the tensor cores have read them
    acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
    mbarrier.arrive(v_empty.index(now), count=1)
    pairs = paired(p, DTYPE)
    acc = acc * gl.expand_dims(gl.convert_layout(alpha, gl.SliceLayout(1, OUT)), 1)
    return step + 1, end, later, m_new, l, acc, pairs


@gluon.jit
def _consume(
    od, lse_ptr, margins, masks, lists, sizes, turns, scale_log2, qs, ks, vs, os, bars,
    BN: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, CONSUMERS: gl.constexpr, W: gl.constexpr, HAS_LSE: gl.constexpr,
    OBSERVE: gl.constexpr, PARTIAL: gl.constexpr,
):  # fmt: skip
    """Attend for the 64 rows of consumer ``W``; scores are in base 2."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    tiles, tiles_per_head, heads, q_len = sizes
    dtype: gl.constexpr = od.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    Q_BLOCK: gl.constexpr = ROW_TILES * CONSUMERS * 64
    step = 0
    done = 0
    q = qs.index(W).reshape([64, D])
    blank = gl.zeros([64, BN], gl.float32, SCORES)
    MASKED: gl.constexpr = blank.reshape([4, 2, 8, BN // 64, 8, 4, 2]).type.layout
    t = gl.program_id(0)
    while t < tiles:
        i, b, h, listed, count, width, num_tiles = _work(
            t, lists, heads, tiles_per_head, ROW_TILES, KV, BN
        )
        margin_ptr, most, kv_len = margins
        exists = (i * CONSUMERS + W) * 64 + gl.arange(0, 64, gl.SliceLayout(1, SCORES)) < q_len
        column = gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        end = width - (num_tiles - 1) * BN
        later = 0
        if OBSERVE:
            margin_ptr += t.to(gl.int64) * most * (4 * CONSUMERS)
            end = gl.where(count > 0, kv_len - gl.load(listed) * KV, 0)
            later = kv_len - gl.load(listed + gl.minimum(1, num_tiles - 1)) * KV
        words = 0
        pattern = 0
        first_tiles = 1  # those with a mask, and the ragged one
        if PARTIAL:
            partial_ptr, patterns, bits_ptr = masks
            _count, _index, _len, count_b, count_h, index_b, index_h, index_m = lists
            row = i // ROW_TILES
            partial = gl.load(partial_ptr + b * count_b + h * count_h + row)
            first_tiles = gl.maximum(num_tiles - (count - partial) * KV // BN, 1)
            start = b.to(gl.int64) * index_b + h.to(gl.int64) * index_h + row.to(gl.int64) * index_m
            bits = (patterns + start, bits_ptr, (i % ROW_TILES * CONSUMERS + W) * 64)
            pattern = pattern_of(patterns + start, num_tiles - 1, count, MASKED, BN, KV)
            words, pattern = _bits_of(bits, num_tiles - 1, pattern, count, MASKED, BN, KV, Q_BLOCK)
        mbarrier.wait(q_full.index(W), done & 1)
        mbarrier.wait(k_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        k = ks.index(stage_of(step, STAGES)).reshape([BN, D]).permute((1, 0))
        s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_empty.index(stage_of(step, STAGES)), count=1)

        s = gl.where(gl.expand_dims(column, 0) < end, s, UNSEEN if PARTIAL else float("-inf"))
        if PARTIAL:
            s = masked(s, words, MASKED)
            words, pattern = _bits_of(bits, num_tiles - 2, pattern, count, MASKED, BN, KV, Q_BLOCK)
        m = row_max(s) * scale_log2
        if OBSERVE:
            _write_lead(margin_ptr, float("inf") + 0 * m, exists, 4 * W)
        if not PARTIAL:
            m = gl.where(m == float("-inf"), 0.0, m)  # without keys: -inf - -inf is no number
        p = gl.exp2(s * scale_log2 - gl.expand_dims(m, 1))
        l = thread_sums(p)
        pairs = paired(p, dtype)
        acc = gl.zeros([64, D], gl.float32, OUT)
        for n in range(1, first_tiles):
            step, end, later, m, l, acc, pairs = _step(
                n, step, end, later, m, l, acc, pairs,
                q, blank, column, exists, listed, kv_len, num_tiles, margin_ptr, words,
                ks, vs, bars, scale_log2, BN, KV, D, STAGES, CONSUMERS, W, OBSERVE, PARTIAL,
                MASKED, OUT, dtype,
            )  # fmt: skip
            if PARTIAL:
                words, pattern = _bits_of(
                    bits, num_tiles - 2 - n, pattern, count, MASKED, BN, KV, Q_BLOCK
                )
        for n in range(first_tiles, num_tiles):
            step, end, later, m, l, acc, pairs = _step(
                n, step, end, later, m, l, acc, pairs,
                q, blank, column, exists, listed, kv_len, num_tiles, margin_ptr, words,
                ks, vs, bars, scale_log2, BN, KV, D, STAGES, CONSUMERS, W, OBSERVE, False,
                MASKED, OUT, dtype,
            )  # fmt: skip
        mbarrier.arrive(q_empty.index(W), count=1)
        mbarrier.wait(v_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        v = vs.index(stage_of(step, STAGES)).reshape([BN, D])
        weights = weights_of(pairs, dtype, gl.DotOperandLayout(0, OUT, 2))
        acc = warpgroup_mma(weights, v, acc, is_async=True)
        acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
        mbarrier.arrive(v_empty.index(stage_of(step, STAGES)), count=1)
        step += 1

        l = row_sums(l, gl.SliceLayout(1, SCORES))
        if PARTIAL:
            l = gl.where(m > 0.5 * UNSEEN * scale_log2, l, 0.0)  # it has seen no key
        row = (i * CONSUMERS + W) * 64
        if HAS_LSE:
            rows = row + gl.arange(0, 64, gl.SliceLayout(1, SCORES))
            lse = (m + gl.log2(l)) * 0.6931471805599453
            at = lse_ptr + (b.to(gl.int64) * heads + h) * q_len + rows
            gl.store(at, lse, mask=rows < q_len)
        l = gl.convert_layout(l, gl.SliceLayout(1, OUT))
        share = gl.where(l > 0, 1.0 / l, 0.0)
        acc = gl.where(gl.expand_dims(l, 1) > 0, acc * gl.expand_dims(share, 1), 0.0)
        tma.store_wait(0)  # the output of the tile before has left this memory
        os.index(W).reshape([64, D]).store(acc.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(od, [b, h, row, 0], os.index(W))
        done += 1
        t = hear(turns, done, 4)
    tma.store_wait(0)


# a size of one must stay a number: a partition cannot be handed a constant inside a tuple
@gluon.jit(do_not_specialize=INTEGERS)
def forward(
    qd, kd, vd, od, lse_ptr, margin_ptr, count_ptr, index_ptr, counter_ptr,
    partial_ptr, pattern_ptr, bits_ptr,
    count_b, count_h, index_b, index_h, index_m,
    tiles, tiles_per_head, heads, q_len, kv_len, most, scale_log2,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr,
    D: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr, HAS_LSE: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, OBSERVE: gl.constexpr, PARTIAL: gl.constexpr,
):  # fmt: skip
    """Attention under lists of key blocks, one program a place on the device."""
    dtype: gl.constexpr = od.dtype
    rows: gl.constexpr = gl.NVMMASharedLayout(qd.layout.swizzle_byte_width, 16, 4)
    qs = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, 1, 64, D], rows)
    ks = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BN, D], rows)
    vs = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BN, D], rows)
    os = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, 1, 64, D], rows)
    q_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(CONSUMERS):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for s in gl.static_range(STAGES):
        mbarrier.init(k_full.index(s), count=1)
        mbarrier.init(k_empty.index(s), count=CONSUMERS)
        mbarrier.init(v_full.index(s), count=1)
        mbarrier.init(v_empty.index(s), count=CONSUMERS)
    turns = allocate()
    fence_async_shared()
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    lists = (count_ptr, index_ptr, kv_len, count_b, count_h, index_b, index_h, index_m)
    sizes = (tiles, tiles_per_head, heads, q_len)
    margins = (margin_ptr, most, kv_len)
    masks = (partial_ptr, pattern_ptr, bits_ptr)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (od, lse_ptr, margins, masks, lists, sizes, turns, scale_log2, qs, ks,
                            vs, os, bars, BN, KV, ROW_TILES, D, STAGES, CONSUMERS, 0, HAS_LSE,
                            OBSERVE, PARTIAL)),
                (_consume, (od, lse_ptr, margins, masks, lists, sizes, turns, scale_log2, qs, ks,
                            vs, os, bars, BN, KV, ROW_TILES, D, STAGES, CONSUMERS, 1, HAS_LSE,
                            OBSERVE, PARTIAL)),
                (_produce, (qd, kd, vd, lists, sizes, turns, counter_ptr, qs, ks, vs, bars, BN,
                            SLOT, KV, ROW_TILES, STAGES, CONSUMERS, OBSERVE)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (od, lse_ptr, margins, masks, lists, sizes, turns, scale_log2, qs, ks,
                            vs, os, bars, BN, KV, ROW_TILES, D, STAGES, CONSUMERS, 0, HAS_LSE,
                            OBSERVE, PARTIAL)),
                (_produce, (qd, kd, vd, lists, sizes, turns, counter_ptr, qs, ks, vs, bars, BN,
                            SLOT, KV, ROW_TILES, STAGES, CONSUMERS, OBSERVE)),
            ],
            [1],
            [24],
        )  # fmt: skip


def refuses(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> str | None:
    """Why this kernel cannot run a call, or None; needs no device sync."""
    reasons = {
        "it is for Hopper GPUs": q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9,
        "it needs fp16 or bf16": q.dtype in (torch.float16, torch.bfloat16),
        "head_dim is above 128": q.shape[-1] <= 128,
        "blocks are of unequal size": plan.q_offsets is None and plan.kv_offsets is None,
        "the query block is no multiple of 64": plan.q_block % 64 == 0,
        "the key block is no multiple of 16": plan.kv_block % 16 == 0,
        "partial blocks need keys in 64s": plan.partial is None or plan.kv_block % 64 == 0,
        "memory is not laid out for TMA": all(suits_tma(x) for x in (q, k, v)),
    }
    return first_unmet(reasons)


def cannot_observe(q: Tensor, plan: BlockPlan) -> str | None:
    """Why blocks cannot be observed in this kernel, or None."""
    if plan.kv_block != _keys(plan, q.shape[-1]) or plan.q_block > 128:
        return f"blocks of {plan.q_block} x {plan.kv_block} are no tiles of it"
    return None


def _keys(plan: BlockPlan, head_dim: int) -> int:
    """Keys in a tile: with one consumer two programs share a multiprocessor, and its memory."""
    return 64 if plan.q_block % 128 and head_dim > 64 else 128


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel; see ``block_sparse.py`` for the arguments."""
    return _launch(q, k, v, plan, scale, return_lse)


def observe(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and margin of each listed block; see ``observe_reference``."""
    warps = 8 if plan.q_block % 128 == 0 else 4
    shape = (*q.shape[:2], *plan.kv_index.shape[2:], warps)
    margin = torch.empty(shape, dtype=torch.float32, device=q.device)
    out, lse = _launch(q, k, v, plan, scale, True, margin)
    assert lse is not None
    return out, lse, margin.amax(dim=-1)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, return_lse: bool,
    margin: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    batch, heads, q_len, head_dim = q.shape
    head_dim_tile = 64 if head_dim <= 64 else 128
    consumers = 2 if plan.q_block % 128 == 0 else 1
    keys = _keys(plan, head_dim)
    slot = math.gcd(plan.kv_block, keys)
    out = torch.empty_like(q)
    lse = q.new_empty((batch, heads, q_len), dtype=torch.float32) if return_lse else None
    count, index = lists_of(plan)
    per_head = -(-q_len // (64 * consumers))
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count * (3 - consumers)
    forward[(min(programs, per_head * batch * heads),)](
        descriptor(q, 64, head_dim_tile),
        descriptor(k, slot, head_dim_tile),
        descriptor(v, slot, head_dim_tile),
        descriptor(out, 64, head_dim_tile),
        out if lse is None else lse,
        out if margin is None else margin,
        count,
        index,
        counter(q.device),
        *((count,) * 3 if plan.partial is None else _masks_of(plan.partial)),
        *shared_strides(count),
        *shared_strides(index),
        index.stride(2),
        per_head * batch * heads,
        per_head,
        heads,
        q_len,
        plan.kv_len,
        index.shape[3],
        scale * LOG2E,
        BN=keys,
        SLOT=slot,
        KV=plan.kv_block,
        ROW_TILES=plan.q_block // (64 * consumers),
        D=head_dim_tile,
        STAGES=2 if head_dim_tile == 128 or consumers == 1 else 4,
        CONSUMERS=consumers,
        HAS_LSE=return_lse,
        CONSUMER_REGISTERS=240,
        OBSERVE=margin is not None,
        PARTIAL=plan.partial is not None,
        num_warps=4,
        maxnreg=168 if consumers == 2 else 128,
    )
    return out, lse


def _masks_of(partial: Partial) -> tuple[Tensor, Tensor, Tensor]:
    """How many blocks of each list are partial, their patterns, and the bits of patterns."""
    return partial.count.contiguous(), partial.pattern.contiguous(), partial.in_order_of_threads


def lists_of(plan: BlockPlan) -> tuple[Tensor, Tensor]:
    """Counts and lists whose last dimension is dense."""
    count, index = (
        x if x.stride(-1) == 1 and plan.partial is None else x.contiguous()
        for x in (plan.kv_count, plan.kv_index)
    )
    return count, index
