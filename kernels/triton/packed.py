"""Block-sparse forward for Hopper (sm_90) in Gluon, for blocks of unequal size.

As ``hopper.py``, but a tile of 128 keys is filled from the chunks that ``chunks.py`` lists,
each copied by TMA from wherever it starts: the 128-byte swizzle repeats every 8 rows, so a chunk
may land on any multiple of them. Keys and values have a producer warp each. Tiles with short chunks
come first, and only they are masked.

Programs take query tiles of 128 rows in turn (``turns.py``) from ``query_tiles``: head by head, as
one head's keys and values fill the cache, and those with the most keys first. Where a tile has no
more than 64 rows, both consumers have them, and each takes every other tile of keys; the second
then hands what it found to the first, through the memory of the queries. Values behind a short
chunk are read and weigh nothing: they must be finite.

Means that stand in for skipped blocks follow as more tiles of keys, in the same softmax: a bias a
row and block adds the logarithm of the block's size, and takes out the blocks that the row lists.
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
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.hopper_rows import over_rows, row_max, row_sums, thread_sums
from vidsparse.kernels.triton.primitives import LOG2E, first_unmet
from vidsparse.kernels.triton.query_tiles import query_tiles
from vidsparse.kernels.triton.ring import phase_of, stage_of
from vidsparse.kernels.triton.tma import descriptor, suits_tma
from vidsparse.kernels.triton.turns import allocate, counter, draw, hear, tell

TAKES_POOLED = True
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # as Triton 3.7 has it
QUERIES, KEYS = 128, 128
# of 8, 16 and 32, all as fast on an H200: 8 fills tiles better, but its lists take twice the memory
CHUNK = 16
STAGES = 3


@gluon.jit
def _work(t, tiles_ptr, lists, SLOTS: gl.constexpr):
    """Query tile ``t``: head, rows, list, lengths, bias, and the tiles of keys it reads.

    Tiles of keys from ``masked`` on have short chunks; the last is always taken for one.
    """
    index_ptr, lengths_ptr, bias_ptr, capacity, most, means = lists
    tile = tiles_ptr + t * 6
    row = gl.load(tile + 1).to(gl.int64)
    whole = gl.load(tile + 4)
    count = gl.load(tile + 5)
    number = gl.maximum((count + SLOTS - 1) // SLOTS, 1)
    masked = gl.minimum(whole // SLOTS, number - 1)
    listed = index_ptr + row * capacity
    lengths = lengths_ptr + row * most
    rows = (gl.load(tile + 2), gl.load(tile + 3))
    return gl.load(tile), rows, listed, lengths, bias_ptr + row * means, count, number, masked


@gluon.jit
def _halved(rows, number):
    """Whether consumers share out a tile's keys and not its rows, 0 or 1: those fill half of it."""
    return ((rows[1] - rows[0] <= 64) & (number > 1)).to(gl.int32)


@gluon.jit
def _hand_on(full, empty, step, STAGES: gl.constexpr):
    """Leave a stage to the other consumer, who alone reads it."""
    mbarrier.wait(full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
    mbarrier.arrive(empty.index(stage_of(step, STAGES)), count=1)


@gluon.jit
def _mask(s, lengths, CHUNK: gl.constexpr, BITS: gl.constexpr):
    """Scores of columns behind the end of their chunk become ``-inf``."""
    column = gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
    last = (lengths >> (column // CHUNK * BITS).to(lengths.dtype)).to(gl.int32) & (CHUNK - 1)
    return gl.where(gl.expand_dims(column % CHUNK <= last, 0), s, float("-inf"))


@gluon.jit
def _biased(s, bias):
    """Scores and a number for each; not pure, so that tiles without it branch around it."""
    return gl.inline_asm_elementwise(
        "add.f32 $0, $1, $2;", "=f,f,f", [s, bias],
        dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _listed(listed, tile, SLOTS: gl.constexpr):
    """The chunks of a tile, two in a word."""
    words = ()
    for x in gl.static_range(SLOTS // 2):
        words = words + (gl.load(listed + tile * (SLOTS // 2) + x),)  # noqa: RUF005 (not in Gluon)
    return words


@gluon.jit
def _produce(
    qd, kd, md, tiles_ptr, lists, total, heads, turns, counter_ptr, qs, ks,
    q_full, q_empty, k_full, k_empty,
    SLOTS: gl.constexpr, CHUNK: gl.constexpr, SHIFT: gl.constexpr,
    STAGES: gl.constexpr, QUERIES_TOO: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """Copy the keys, and queries before them, or the values, a few stages ahead of their use.

    A tile's list is read while the tile before it is copied. The bits of an entry above the lowest
    ``SHIFT`` say where a chunk starts.
    """
    step = 0
    turn = 0
    t = gl.program_id(0)
    while t < total:
        bh, rows, listed, _lengths, _bias, _count, number, _masked = _work(
            t, tiles_ptr, lists, SLOTS
        )
        t_next = t
        b = bh // heads
        h = bh % heads
        if QUERIES_TOO:
            t_next = draw(counter_ptr)
            apart = 64 - 64 * _halved(rows, number)
            for w in gl.static_range(2):
                mbarrier.wait(q_empty.index(w), (turn & 1) ^ 1)
                mbarrier.expect(q_full.index(w), qd.block_type.nbytes)
                at = [b, h, rows[0] + w * apart, 0]
                tma.async_copy_global_to_shared(qd, at, q_full.index(w), qs.index(w))
            tell(turns, turn + 1, t_next)
        words = _listed(listed, number - 1, SLOTS)
        for n in range(number):
            later = _listed(listed, gl.maximum(number - 2 - n, 0), SLOTS)
            stage = stage_of(step, STAGES)
            bar = k_full.index(stage)
            mbarrier.wait(k_empty.index(stage), phase_of(step, STAGES) ^ 1)
            mbarrier.expect(bar, SLOTS * kd.block_type.nbytes)
            for x in gl.static_range(SLOTS):
                to = ks.index(stage).slice(x * CHUNK, CHUNK, dim=2)
                key = ((words[x // 2] >> (x % 2 * 32)) & 0x7FFFFFFF).to(gl.int32) >> SHIFT
                tma.async_copy_global_to_shared(kd, [b, h, key, 0], bar, to)
            words = later
            step += 1
        if MEANS:
            for n in range((lists[5] // (SLOTS * CHUNK)).to(gl.int32)):
                stage = stage_of(step, STAGES)
                bar = k_full.index(stage)
                mbarrier.wait(k_empty.index(stage), phase_of(step, STAGES) ^ 1)
                mbarrier.expect(bar, md.block_type.nbytes)
                at = [b, h, n * SLOTS * CHUNK, 0]
                tma.async_copy_global_to_shared(md, at, bar, ks.index(stage))
                step += 1
        turn += 1
        t = t_next if QUERIES_TOO else hear(turns, turn, 1)


@gluon.jit
def _attend(
    q, scale_log2, lengths_ptr, bias_ptr, count, number, masked, first, stride, total, step,
    ks, vs, k_full, k_empty, v_full, v_empty,
    CHUNK: gl.constexpr, BITS: gl.constexpr, STAGES: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """Of ``total`` tiles of keys, every ``stride``-th from the ``first`` on, for the rows of ``q``.

    Scores are in base 2. Returns the output before it is divided and without the last values, their
    weights, maxima and sums, and the step of those values.
    """
    dtype: gl.constexpr = q.dtype
    D: gl.constexpr = q.shape[1]
    BN: gl.constexpr = ks.shape[3]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
    blank = gl.zeros([64, BN], gl.float32, SCORES)
    if first > 0:
        _hand_on(k_full, k_empty, step, STAGES)
        _hand_on(v_full, v_empty, step, STAGES)
    tile = number - 1 - first
    lengths = gl.load(lengths_ptr + gl.maximum(tile - masked, 0))
    lengths = gl.where(tile < masked, -1, lengths)  # whole chunks
    step += first
    mbarrier.wait(k_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
    k = ks.index(stage_of(step, STAGES)).reshape([BN, D]).permute((1, 0))
    s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=(s,))
    mbarrier.arrive(k_empty.index(stage_of(step, STAGES)), count=1)

    s = _mask(s, lengths, CHUNK, BITS)
    column = gl.arange(0, BN, gl.SliceLayout(0, SCORES))
    s = gl.where(gl.expand_dims(column < count * CHUNK - tile * BN, 0), s, float("-inf"))
    m = row_max(s) * scale_log2
    m = gl.where(m == float("-inf"), -1e30, m)  # a row without keys: -inf - -inf is no number
    p = gl.exp2(s * scale_log2 - gl.expand_dims(m, 1))
    l = thread_sums(p)
    weights = gl.convert_layout(p.to(dtype), WEIGHTS)
    acc = gl.zeros([64, D], gl.float32, OUT)
    lengths = gl.load(lengths_ptr + gl.maximum(tile - stride - masked, 0))
    for n in range(first + stride, total, stride):
        tile = number - 1 - n
        after = step + stride
        if stride > 1:
            _hand_on(k_full, k_empty, step + 1, STAGES)
        mbarrier.wait(k_full.index(stage_of(after, STAGES)), phase_of(after, STAGES))
        k = ks.index(stage_of(after, STAGES)).reshape([BN, D]).permute((1, 0))
        s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        v = vs.index(stage_of(step, STAGES)).reshape([BN, D])
        acc = warpgroup_mma(weights, v, acc, is_async=True)
        later = gl.load(lengths_ptr + gl.maximum(tile - stride - masked, 0))
        s = warpgroup_mma_wait(1, deps=(s,))
        mbarrier.arrive(k_empty.index(stage_of(after, STAGES)), count=1)

        if tile >= masked:
            s = _mask(s, lengths, CHUNK, BITS)
        if MEANS:  # noqa: SIM102 (a branch that is compiled only where there are means)
            if tile < 0:
                bias = gl.load(bias_ptr + (n - number) * BN + column)
                s = _biased(s, gl.expand_dims(bias, 0))
        lengths = later
        m_new = gl.maximum(m, row_max(s) * scale_log2)
        alpha = gl.exp2(m - m_new)
        p = gl.exp2(s * scale_log2 - gl.expand_dims(m_new, 1))
        l = l * over_rows(alpha, l) + thread_sums(p)
        m = m_new

        if stride > 1:
            _hand_on(v_full, v_empty, step + 1, STAGES)
        acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
        mbarrier.arrive(v_empty.index(stage_of(step, STAGES)), count=1)
        weights = gl.convert_layout(p.to(dtype), WEIGHTS)
        acc = acc * gl.expand_dims(gl.convert_layout(alpha, ROWS), 1)
        step = after
    return acc, weights, m, row_sums(l, gl.SliceLayout(1, SCORES)), step


@gluon.jit
def _give(acc, m, l, halves, exchange):
    """The second consumer leaves what it found where the first finds it."""
    first_done, found, memory, numbers = exchange
    mbarrier.wait(first_done, halves & 1)  # with the queries, whose memory this is
    memory.store(acc)
    numbers.index(0).store(m)
    numbers.index(1).store(l)
    fence_async_shared()
    barrier()
    mbarrier.arrive(found, count=1)


@gluon.jit
def _join(acc, m, l, halves, exchange, q_empty):
    """What both consumers found; queries may be copied then."""
    _first_done, found, memory, numbers = exchange
    mbarrier.wait(found, halves & 1)
    other = numbers.index(0).load(m.type.layout)
    top = gl.maximum(m, other)
    mine, its = gl.exp2(m - top), gl.exp2(other - top)
    l = l * mine + numbers.index(1).load(m.type.layout) * its
    ROWS: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    acc = acc * gl.expand_dims(gl.convert_layout(mine, ROWS), 1)
    acc += memory.load(acc.type.layout) * gl.expand_dims(gl.convert_layout(its, ROWS), 1)
    fence_async_shared()
    barrier()
    for w in gl.static_range(2):
        mbarrier.arrive(q_empty.index(w), count=1)
    return acc, top, l


@gluon.jit
def _let_go(half, q_empty, exchange, W: gl.constexpr):
    """Give back the queries: their memory is the exchange's first where the rows are both's."""
    if half == 0:
        mbarrier.arrive(q_empty.index(W), count=1)
    elif W == 0:
        mbarrier.arrive(exchange[0], count=1)


@gluon.jit
def _settle(acc, m, l, start, end, half, halves, exchange, q_empty, W: gl.constexpr):
    """What a consumer writes, and the end of its rows: where the rows are both's the first all."""
    if half > 0:
        if W == 0:
            acc, m, l = _join(acc, m, l, halves, exchange, q_empty)
        else:
            _give(acc, m, l, halves, exchange)
            end = start
    return acc, m, l, end


@gluon.jit
def _write(acc, m, l, out, lse_ptr, bh, heads, q_len, start, end, head_dim, HAS_LSE: gl.constexpr):
    """Rows of a head from ``start`` to ``end``, 64 at most, and their log-sum-exp."""
    o_ptr, o_b, o_h, o_s = out
    o_ptr = o_ptr + (bh // heads).to(gl.int64) * o_b + (bh % heads).to(gl.int64) * o_h
    lse_ptr += bh.to(gl.int64) * q_len
    OUT: gl.constexpr = acc.type.layout
    ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
    if HAS_LSE:
        row = start + gl.arange(0, 64, m.type.layout)
        gl.store(lse_ptr + row, (m + gl.log2(l)) * 0.6931471805599453, mask=row < end)
    l = gl.convert_layout(l, ROWS)
    share = gl.expand_dims(gl.where(l > 0, 1.0 / l, 0.0), 1)
    acc = gl.where(gl.expand_dims(l, 1) > 0, acc * share, 0.0)
    row = gl.expand_dims(gl.arange(0, 64, ROWS), 1)
    dim = gl.expand_dims(gl.arange(0, acc.shape[1], gl.SliceLayout(0, OUT)), 0)
    at = o_ptr + start.to(gl.int64) * o_s + row * o_s + dim
    gl.store(at, acc.to(o_ptr.dtype.element_ty), mask=(start + row < end) & (dim < head_dim))


@gluon.jit
def _consume(
    o_ptr, o_b, o_h, o_s, lse_ptr, tiles_ptr, lists, total, heads, q_len, head_dim, scale_log2,
    turns, exchange, qs, ks, vs, bars,
    SLOTS: gl.constexpr, CHUNK: gl.constexpr, BITS: gl.constexpr, STAGES: gl.constexpr,
    W: gl.constexpr, HAS_LSE: gl.constexpr, MEANS: gl.constexpr,
):  # fmt: skip
    """Take the 64 rows of consumer ``W`` of each tile, or if it has no more, half of its keys."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    BN: gl.constexpr = SLOTS * CHUNK
    D: gl.constexpr = qs.shape[4]
    step = 0
    turn = 0
    halves = 0
    q = qs.index(W).reshape([64, D])
    t = gl.program_id(0)
    while t < total:
        bh, rows, _listed, lengths_ptr, bias_ptr, count, number, masked = _work(
            t, tiles_ptr, lists, SLOTS
        )
        tiles = number
        if MEANS:
            tiles += (lists[5] // BN).to(gl.int32)
        half = _halved(rows, number)
        mbarrier.wait(q_full.index(W), turn & 1)
        acc, weights, m, l, at = _attend(
            q, scale_log2, lengths_ptr, bias_ptr, count, number, masked, half * W, 1 + half, tiles,
            step, ks, vs, k_full, k_empty, v_full, v_empty, CHUNK, BITS, STAGES, MEANS,
        )  # fmt: skip
        _let_go(half, q_empty, exchange, W)
        mbarrier.wait(v_full.index(stage_of(at, STAGES)), phase_of(at, STAGES))
        acc = warpgroup_mma(
            weights, vs.index(stage_of(at, STAGES)).reshape([BN, D]), acc, is_async=True
        )
        acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
        mbarrier.arrive(v_empty.index(stage_of(at, STAGES)), count=1)
        step += tiles
        if at + 1 < step:  # the last tile was the other's
            _hand_on(k_full, k_empty, at + 1, STAGES)
            _hand_on(v_full, v_empty, at + 1, STAGES)

        start = rows[0] + W * 64
        acc, m, l, end = _settle(acc, m, l, start, rows[1], half, halves, exchange, q_empty, W)
        halves += half
        out = (o_ptr, o_b, o_h, o_s)
        _write(acc, m, l, out, lse_ptr, bh, heads, q_len, start, end, head_dim, HAS_LSE)
        turn += 1
        t = hear(turns, turn, 4)


INTEGERS = (
    "o_b", "o_h", "o_s", "capacity", "most", "means", "heads", "q_len", "head_dim"
)  # fmt: skip


@gluon.jit
def barriers(STAGES: gl.constexpr):
    """Of queries, keys and values: full, and empty again."""
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(2):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for s in gl.static_range(STAGES):
        mbarrier.init(k_full.index(s), count=1)
        mbarrier.init(k_empty.index(s), count=2)
        mbarrier.init(v_full.index(s), count=1)
        mbarrier.init(v_empty.index(s), count=2)
    return q_full, q_empty, k_full, k_empty, v_full, v_empty


@gluon.jit
def exchange_by(memory):
    """What the second consumer hands over to the first, and through which memory."""
    first_done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    found = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(first_done, count=1)
    mbarrier.init(found, count=1)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    numbers = gl.allocate_shared_memory(gl.float32, [2, 64], flat)
    return first_done, found, memory, numbers


# a size of one must stay a number: a partition cannot be handed a constant inside a tuple
@gluon.jit(do_not_specialize=INTEGERS)
def forward(
    qd, kd, vd, mean_kd, mean_vd, o_ptr, o_b: int64, o_h: int64, o_s: int64, lse_ptr,
    tiles_ptr, total_ptr, counter_ptr, index_ptr, lengths_ptr, bias_ptr,
    capacity: int64, most: int64, means: int64, heads, q_len, head_dim, scale_log2,
    SLOTS: gl.constexpr, CHUNK: gl.constexpr, BITS: gl.constexpr,
    STAGES: gl.constexpr, D: gl.constexpr, HAS_LSE: gl.constexpr, MEANS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention under lists of chunks, one program a multiprocessor."""
    dtype: gl.constexpr = kd.dtype
    rows: gl.constexpr = gl.NVMMASharedLayout(qd.layout.swizzle_byte_width, 16, 4)
    qs = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, D], rows)
    ks = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, SLOTS * CHUNK, D], rows)
    vs = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, SLOTS * CHUNK, D], rows)
    bars = barriers(STAGES)
    turns = allocate()
    spread: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    memory = qs._reinterpret(gl.float32, [64, D], spread)  # as many bytes as all queries
    exchange = exchange_by(memory)
    fence_async_shared()
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    lists = (index_ptr, lengths_ptr, bias_ptr, capacity, most, means)
    total = gl.load(total_ptr)
    gl.warp_specialize(
        [
            (_consume, (o_ptr, o_b, o_h, o_s, lse_ptr, tiles_ptr, lists, total, heads, q_len,
                        head_dim, scale_log2, turns, exchange, qs, ks, vs, bars,
                        SLOTS, CHUNK, BITS, STAGES, 0, HAS_LSE, MEANS)),
            (_consume, (o_ptr, o_b, o_h, o_s, lse_ptr, tiles_ptr, lists, total, heads, q_len,
                        head_dim, scale_log2, turns, exchange, qs, ks, vs, bars,
                        SLOTS, CHUNK, BITS, STAGES, 1, HAS_LSE, MEANS)),
            (_produce, (qd, kd, mean_kd, tiles_ptr, lists, total, heads, turns, counter_ptr, qs, ks,
                        q_full, q_empty, k_full, k_empty,
                        SLOTS, CHUNK, BITS + 1, STAGES, True, MEANS)),
            (_produce, (qd, vd, mean_vd, tiles_ptr, lists, total, heads, turns, counter_ptr, qs, vs,
                        q_full, q_empty, v_full, v_empty,
                        SLOTS, CHUNK, BITS + 1, STAGES, False, MEANS)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def refuses(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> str | None:
    """Why this kernel cannot run a call, or None; needs no device sync."""
    reasons = {
        "it is for Hopper GPUs": q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9,
        "it needs fp16 or bf16": q.dtype in (torch.float16, torch.bfloat16),
        "head_dim is above 128": q.shape[-1] <= 128,
        "blocks are of equal size": plan.q_offsets is not None or plan.kv_offsets is not None,
        "memory is not laid out for TMA": all(suits_tma(x) for x in (q, k, v)),
        "stand-ins differ where plans are shared": plan.pooled is None or _shares_sizes(plan),
    }
    return first_unmet(reasons)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel, stand-ins included; see ``block_sparse.py`` for the arguments."""
    batch, heads, q_len, head_dim = q.shape
    wide = 64 if head_dim <= 64 else 128
    out = torch.empty_like(q)
    lse = q.new_empty((batch, heads, q_len), dtype=torch.float32) if return_lse else None
    chunks = list_chunks(plan, CHUNK, KEYS // CHUNK, impl="triton")
    words = chunks.index.view(torch.int64)
    tiles, total = query_tiles(plan, chunks, batch, heads, QUERIES)
    bias = chunks.masks if plan.pooled is None else bias_of(plan, chunks.count.shape, scale)
    means = [k, v] if plan.pooled is None else _means(plan.pooled, k)
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    forward[(min(programs, tiles.shape[0]),)](
        descriptor(q, 64, wide),
        descriptor(k, CHUNK, wide),
        descriptor(v, CHUNK, wide),
        *(descriptor(x, KEYS, wide) for x in means),
        out,
        *out.stride()[:3],
        out if lse is None else lse,
        tiles,
        total,
        counter(q.device),
        words,
        chunks.masks,
        bias,
        words.shape[-1],
        chunks.masks.shape[-1],
        bias.shape[-1],
        heads,
        q_len,
        head_dim,
        scale * LOG2E,
        SLOTS=KEYS // CHUNK,
        CHUNK=CHUNK,
        BITS=CHUNK.bit_length() - 1,
        STAGES=STAGES,
        D=wide,
        HAS_LSE=return_lse,
        MEANS=plan.pooled is not None,
        CONSUMER_REGISTERS=224,
        PRODUCER_REGISTERS=56,
        num_warps=4,
        maxnreg=168,
    )
    return out, lse


def _shares_sizes(plan: BlockPlan) -> bool:
    """Whether rows that share a list have stand-ins of the same sizes."""
    assert plan.pooled is not None
    sizes = plan.pooled.size.shape[:-1] or (1, 1)
    edges = (1, 1) if plan.kv_offsets is None else plan.kv_offsets.shape[:2]
    listed = torch.broadcast_shapes(plan.kv_index.shape[:2], edges)
    return torch.broadcast_shapes(sizes, listed) == listed


def bias_of(plan: BlockPlan, shape: torch.Size, scale: float) -> Tensor:
    """What is added to the scores of stand-ins before they are scaled: ``ln(size) / scale``.

    Float32 ``(B|1, H|1, M, whole tiles)``, ``-inf`` for blocks that a row lists or are not there.
    """
    assert plan.pooled is not None
    size = plan.pooled.size.float()
    size = (size.log() / scale).reshape(*(size.shape[:-1] or (1, 1)), 1, -1)
    wide = -(-(plan.num_kv_blocks + 1) // KEYS) * KEYS
    bias = size.new_full((*shape, wide), float("-inf"))
    bias[..., : plan.num_kv_blocks] = size
    entry = torch.arange(plan.kv_index.shape[-1], device=bias.device)
    used = entry < plan.kv_count[..., None]
    listed = plan.kv_index.where(used, plan.num_kv_blocks).long()  # others: a column that is none
    return bias.scatter_(-1, listed.expand(*shape, -1), float("-inf"))


def _means(pooled: Pooled, like: Tensor) -> list[Tensor]:
    """Mean keys and values as the kernel reads them."""
    shape = (*like.shape[:2], pooled.key.shape[-2], like.shape[-1])
    return [x.to(like.dtype).expand(shape).contiguous() for x in (pooled.key, pooled.value)]
