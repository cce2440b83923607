"""Block-sparse forward in eight bits for Hopper (sm_90) in Gluon, for blocks of unequal size.

What is listed and who copies it is as in ``packed.py``, what is rounded as in
``low_bit_hopper.py``. What differs:

* A tile of keys is filled from chunks of many clusters, so that all keys of a head have one scale.
* FP8 products want the keys of a channel of values side by side, which chunks of any length do not
  give. So values stand in panels of 16 keys (``quantize.py``): 16 bytes of each channel behind one
  another. Chunks are cut where panels are, and may be short at both ends.
* TMA swizzles what it copies, and a product reads panels as they are: they are stored swizzled,
  which undoes it.
* Unseen keys are so far below all others in integers that they weigh nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import int64
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse.kernels.engines.low_bit import LOG2E, PANEL, Quantized
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.hopper_masks import along, only
from vidsparse.kernels.triton.hopper_rows import over_rows, row_max, row_sums, thread_sums
from vidsparse.kernels.triton.low_bit_hopper import LN2, LOG2_448, _to_operand, descriptor, fits
from vidsparse.kernels.triton.packed import (
    INTEGERS,
    KEYS,
    QUERIES,
    _halved,
    _hand_on,
    _let_go,
    _produce,
    _settle,
    _shares_sizes,
    _work,
    _write,
    barriers,
    bias_of,
    exchange_by,
)
from vidsparse.kernels.triton.primitives import first_unmet
from vidsparse.kernels.triton.query_tiles import query_tiles
from vidsparse.kernels.triton.ring import phase_of, stage_of
from vidsparse.kernels.triton.turns import allocate, counter, hear

TAKES_POOLED, LAYOUT = True, "panels"
STAGES = 4


@gluon.jit
def _words(masks_ptr, tile, masked, LANES: gl.constexpr):
    """The word of a tile that each of four threads has; of a tile without, another's."""
    return gl.load(masks_ptr + gl.maximum(tile - masked, 0) * 4 + gl.arange(0, 4, LANES))


@gluon.jit
def _masked(s, words):
    """Scores, -2 ** 30 where the bit of a key is not set: see ``FLOOR`` in ``low_bit.py``."""
    tile = s.reshape([s.shape[0], s.shape[1] // 8, 4, 2])
    words = gl.expand_dims(gl.expand_dims(gl.expand_dims(words, 0), 1), 3)
    layout: gl.constexpr = tile.type.layout
    place = along(s.shape[1] // 8, 1, 4, layout) * 2 + along(2, 3, 4, layout)
    tile = gl.inline_asm_elementwise(
        """{
        .reg .b32 seen;
        bfe.s32 seen, $2, $3, 1;
        lop3.b32 $0, $1, seen, 0xC0000000, 0xE2;
        }""",
        "=r,r,r,r", [tile, words, place], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    return gl.convert_layout(tile.reshape(s.shape), s.type.layout, assert_trivial=True)


@gluon.jit
def _biased(s, bias, by):
    """Scores and a number for each column, in units of the row's scores; ``-inf`` is the least."""
    units = gl.expand_dims(bias, 0) * gl.expand_dims(1 / by, 1)
    return gl.inline_asm_elementwise(
        "cvt.rni.s32.f32 $0, $1;", "=r,f", [s.to(gl.float32) + units],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.constexpr_function
def _panel_layout(keys, head_dim):
    """16 keys of a channel side by side, panels of them for all channels behind each other."""
    key = [[1 << bit, 0] for bit in range(keys.bit_length() - 1)]
    channel = [[0, 1 << bit] for bit in range(head_dim.bit_length() - 1)]
    return gl.SharedLinearLayout(key[:4] + channel + key[4:], [], 1024)


@gluon.jit
def _panels(vs, stage):
    """Values of a tile as a product reads them, ``[keys, head_dim]``."""
    BN: gl.constexpr = vs.shape[3]
    D: gl.constexpr = vs.shape[4]
    return vs.index(stage)._reinterpret(gl.float8e4nv, [BN, D], _panel_layout(BN, D))


@gluon.jit
def _attend(
    q, by, masks_ptr, bias_ptr, number, masked, first, stride, total, step,
    ks, vs, bars, STAGES: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """Of ``total`` tiles of keys, every ``stride``-th from the ``first`` on, for the rows of ``q``.

    ``by`` brings a row's integers to scores in base 2. Tiles of means count down from -1. Returns
    the output before it is divided, maxima and sums. Each turn starts the scores of the next tile;
    those after the last are of whatever lies there, and nobody reads them. No branch while products
    are under way: the compiler would keep their sums elsewhere meanwhile.
    """
    k_full, k_empty, v_full, v_empty = bars
    D: gl.constexpr = q.shape[1]
    BN: gl.constexpr = ks.shape[3]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 32])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 32])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 4)
    ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
    blank = gl.zeros([64, BN], gl.int32, SCORES)
    blank_out = gl.zeros([64, D], gl.float32, OUT)
    LANES: gl.constexpr = only(blank.reshape([64, BN // 8, 4, 2]).type.layout, (2,))
    bias_ptr += gl.arange(0, BN, gl.SliceLayout(0, SCORES))
    for _ in range(first):
        _hand_on(k_full, k_empty, step, STAGES)
        _hand_on(v_full, v_empty, step, STAGES)
        step += 1
    tile = number - 1 - first
    words = _words(masks_ptr, tile, masked, LANES)
    mbarrier.wait(k_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
    k = ks.index(stage_of(step, STAGES)).reshape([BN, D]).permute((1, 0))
    s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=(s,))
    mbarrier.arrive(k_empty.index(stage_of(step, STAGES)), count=1)
    s, m_new = _seen_and_biased(s, words, tile, masked, bias_ptr, by, MEANS)
    m = gl.full([64], float("-inf"), gl.float32, m_new.type.layout)
    l = thread_sums(blank).to(gl.float32)
    acc = blank_out
    words = _words(masks_ptr, tile - stride, masked, LANES)
    for n in range(first, total, stride):
        alpha = gl.exp2(m - m_new)
        m = m_new
        p = gl.exp2(s.to(gl.float32) * gl.expand_dims(by, 1) - gl.expand_dims(m - LOG2_448, 1))
        l = l * over_rows(alpha, l) + thread_sums(p)
        weights = _to_operand(p, WEIGHTS)
        tile = number - 1 - n - stride
        more = n + stride < total
        after = step + stride
        stage = stage_of(after, STAGES)
        mbarrier.wait(k_full.index(stage), phase_of(after, STAGES), pred=more)
        k = ks.index(stage).reshape([BN, D]).permute((1, 0))
        s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        v = _panels(vs, stage_of(step, STAGES))
        part = warpgroup_mma(weights, v, blank_out, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(1, deps=(s,))
        mbarrier.arrive(k_empty.index(stage), count=1, pred=more)
        m_new = gl.maximum(m, row_max(s).to(gl.float32) * by)
        part = warpgroup_mma_wait(0, deps=(part,))
        mbarrier.arrive(v_empty.index(stage_of(step, STAGES)), count=1)
        acc = acc * gl.expand_dims(gl.convert_layout(alpha, ROWS), 1) + part
        if more & ((tile >= masked) | (tile < 0)):
            s, top = _seen_and_biased(s, words, tile, masked, bias_ptr, by, MEANS)
            words = _words(masks_ptr, tile - stride, masked, LANES)
            m_new = gl.maximum(m, top)
        if (stride > 1) & (n + 1 < total):
            _hand_on(k_full, k_empty, step + 1, STAGES)
            _hand_on(v_full, v_empty, step + 1, STAGES)
        step = after
    return acc, m, row_sums(l, gl.SliceLayout(1, SCORES))


@gluon.jit
def _seen_and_biased(s, words, tile, masked, bias_ptr, by, MEANS: gl.constexpr):
    """Scores of a tile and their maxima in base 2, some unseen or biased."""
    if tile >= masked:
        s = _masked(s, words)
    if MEANS and tile < 0:
        s = _biased(s, gl.load(bias_ptr - (tile + 1) * s.shape[1]), by)
    return s, row_max(s).to(gl.float32) * by


@gluon.jit
def _consume(
    o_ptr, o_b, o_h, o_s, lse_ptr, scale_ptrs, tiles_ptr, lists, total, heads, q_len, head_dim,
    turns, exchange, qs, ks, vs, bars,
    SLOTS: gl.constexpr, STAGES: gl.constexpr, W: gl.constexpr, HAS_LSE: gl.constexpr,
    MEANS: gl.constexpr,
):  # fmt: skip
    """Take the 64 rows of consumer ``W`` of each tile, or if it has no more, half of its keys."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr = scale_ptrs
    BN: gl.constexpr = ks.shape[3]
    D: gl.constexpr = qs.shape[4]
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 32])
    ROWS: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 32]))
    dims = gl.arange(0, D, gl.SliceLayout(0, OUT))
    step = 0
    turn = 0
    halves = 0
    q = qs.index(W).reshape([64, D])
    t = gl.program_id(0)
    while t < total:
        bh, rows, _listed, masks_ptr, bias_ptr, count, number, masked = _work(
            t, tiles_ptr, lists, SLOTS
        )
        tiles = number
        if MEANS:
            tiles += (lists[5] // BN).to(gl.int32)
        half = _halved(rows, number)
        start = rows[0] + W * (64 - 64 * half)
        at = bh.to(gl.int64) * q_len + start + gl.arange(0, 64, ROWS)
        there = start + gl.arange(0, 64, ROWS) < q_len
        by = gl.load(q_scale_ptr + at, mask=there, other=1.0) * gl.load(k_scale_ptr + bh)
        mbarrier.wait(q_full.index(W), turn & 1)
        first = half * W
        if MEANS:
            first += (count == 0).to(gl.int32)  # the list's one tile has nothing to see
        acc, m, l = _attend(
            q, by, masks_ptr, bias_ptr, number, masked, first, 1 + half, tiles, step,
            ks, vs, (k_full, k_empty, v_full, v_empty), STAGES, MEANS,
        )  # fmt: skip
        step += tiles
        _let_go(half, q_empty, exchange, W)
        if not MEANS:
            l = gl.where(count > 0, l, 0.0)

        acc, m, l, end = _settle(acc, m, l, start, rows[1], half, halves, exchange, q_empty, W)
        halves += half
        v_scale = gl.load(v_scale_ptr + bh * head_dim + dims, mask=dims < head_dim, other=0.0)
        acc *= gl.expand_dims(v_scale, 0)
        if HAS_LSE:
            m += gl.load(shift_ptr + at, mask=there, other=0.0) / LN2 - LOG2_448
        out = (o_ptr, o_b, o_h, o_s)
        _write(acc, m, l, out, lse_ptr, bh, heads, q_len, start, end, head_dim, HAS_LSE)
        turn += 1
        t = hear(turns, turn, 4)


# a size of one must stay a number: a partition cannot be handed a constant inside a tuple
@gluon.jit(do_not_specialize=INTEGERS)
def forward(
    qd, kd, vd, mean_kd, mean_vd, o_ptr, o_b: int64, o_h: int64, o_s: int64, lse_ptr,
    q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr,
    tiles_ptr, total_ptr, counter_ptr, index_ptr, masks_ptr, bias_ptr,
    capacity: int64, most: int64, means: int64, heads, q_len, head_dim,
    SLOTS: gl.constexpr, CHUNK: gl.constexpr, BITS: gl.constexpr,
    STAGES: gl.constexpr, D: gl.constexpr, HAS_LSE: gl.constexpr, MEANS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention under lists of chunks, one program a multiprocessor."""
    BN: gl.constexpr = SLOTS * CHUNK
    qs = gl.allocate_shared_memory(gl.int8, [2, 1, 1, 64, D], qd.layout)
    ks = gl.allocate_shared_memory(gl.int8, [STAGES, 1, 1, BN, D], kd.layout)
    vs = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 1, 1, BN, D], vd.layout)
    bars = barriers(STAGES)
    turns = allocate()
    spread: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    exchange = exchange_by(gl.allocate_shared_memory(gl.float32, [64, D], spread))
    fence_async_shared()
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    lists = (index_ptr, masks_ptr, bias_ptr, capacity, most, means)
    scale_ptrs = (q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr)
    total = gl.load(total_ptr)
    gl.warp_specialize(
        [
            (_consume, (o_ptr, o_b, o_h, o_s, lse_ptr, scale_ptrs, tiles_ptr, lists, total, heads,
                        q_len, head_dim, turns, exchange, qs, ks, vs, bars,
                        SLOTS, STAGES, 0, HAS_LSE, MEANS)),
            (_consume, (o_ptr, o_b, o_h, o_s, lse_ptr, scale_ptrs, tiles_ptr, lists, total, heads,
                        q_len, head_dim, turns, exchange, qs, ks, vs, bars,
                        SLOTS, STAGES, 1, HAS_LSE, MEANS)),
            (_produce, (qd, kd, mean_kd, tiles_ptr, lists, total, heads, turns, counter_ptr, qs, ks,
                        q_full, q_empty, k_full, k_empty,
                        SLOTS, CHUNK, 2 * BITS, STAGES, True, MEANS)),
            (_produce, (qd, vd, mean_vd, tiles_ptr, lists, total, heads, turns, counter_ptr, qs,
                        vs, q_full, q_empty, v_full, v_empty,
                        SLOTS, CHUNK, 2 * BITS, STAGES, False, MEANS)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def refuses(out: Tensor, plan: BlockPlan) -> str | None:
    """Why this kernel cannot run a call on a Hopper GPU, or None; needs no device sync."""
    reasons = fits(out) | {
        "blocks are of equal size": plan.q_offsets is not None or plan.kv_offsets is not None,
        "stand-ins differ where plans are shared": plan.pooled is None or _shares_sizes(plan),
    }
    return first_unmet(reasons)


def launch(
    x: Quantized,
    plan: BlockPlan,
    out: Tensor,
    *,
    return_lse: bool,
) -> Tensor | None:
    """Attend into ``out``, stand-ins included, and return the log-sum-exp.

    Args:
        x: In ``LAYOUT``, with one scale of keys a head, and the means of stand-ins.
        plan: One that the kernel does not refuse.
        out: ``(batch, heads, q_len, head_dim)``.
        return_lse: Whether to return the log-sum-exp.
    """
    batch, heads, q_len, head_dim = out.shape
    wide = x.value.shape[-1]
    lse = x.shift.new_empty((batch, heads, q_len)) if return_lse else None
    chunks = list_chunks(plan, PANEL, KEYS // PANEL, aligned=True, impl="triton")
    words = chunks.index.view(torch.int64)
    tiles, total = query_tiles(plan, chunks, batch, heads, QUERIES)
    means = (x.key, x.value)
    bias = x.key_scale
    if plan.pooled is not None:
        assert x.mean_key is not None
        assert x.mean_value is not None
        means, bias = (x.mean_key, x.mean_value), bias_of(plan, chunks.count.shape, 1 / LOG2E)
    programs = torch.cuda.get_device_properties(out.device).multi_processor_count
    forward[(min(programs, tiles.shape[0]),)](
        descriptor(x.query, (64, wide)),
        descriptor(x.key, (PANEL, wide)),
        descriptor(x.value, (PANEL, wide)),
        *(descriptor(y, (KEYS, wide)) for y in means),
        out,
        *out.stride()[:3],
        out if lse is None else lse,
        x.query_scale,
        x.key_scale,
        x.value_scale,
        x.shift,
        tiles,
        total,
        counter(out.device),
        words,
        chunks.masks,
        bias,
        words.shape[-1],
        4 * chunks.masks.shape[3],
        bias.shape[-1],
        heads,
        q_len,
        head_dim,
        SLOTS=KEYS // PANEL,
        CHUNK=PANEL,
        BITS=PANEL.bit_length() - 1,
        STAGES=STAGES,
        D=wide,
        HAS_LSE=return_lse,
        MEANS=plan.pooled is not None,
        CONSUMER_REGISTERS=240,
        PRODUCER_REGISTERS=24,
        num_warps=4,
        maxnreg=168,
    )
    return lse
