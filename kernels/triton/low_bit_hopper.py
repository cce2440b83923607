"""Block-sparse forward in eight bits for Hopper (sm_90) in Gluon.

As ``hopper.py``: one producer warp feeds two consumers of 64 query rows through TMA; the key tiles
of a list lie end to end, and the ragged one goes first. What differs:

* Scores are INT8 products summed in int32. A row's scale and a key block's make them floats within
  the multiply-add that the softmax needs anyway.
* Weights fill e4m3's range: 448 is added as ``log2(448)`` in the exponent and leaves with the sum.
  Two columns of scores that a thread holds are no neighbours to the next product, so values come
  permuted (``quantize.py``), and weights stay in the registers where the scores were.
* The tensor cores keep 13 bits of an FP8 product's sum. Each tile of 128 keys is summed afresh and
  added in float32, within the multiply-add that rescales the output: no instruction more.
* Scores of the next tile start among the exponentials of this one, as soon as their registers are
  free, and the next maxima are looked for while values are multiplied.

On an H200 a step of 128 x 128 takes some 2,200 cycles; the tensor cores need half of them, the
exponentials too. Issue slots are 42 % busy: two warps a scheduler do not hide what each waits for.
Slower by 4 to 14 % were: consumers that take turns, all exponentials before the next products, an
addition in place of the conversion to float (results/low_bit_variants_h200.json). Queries held in
registers are as fast, within 2 % (results/search_and_observing_h200.json).
Near 690 W, clocks fall as the rate grows.
"""

from __future__ import annotations

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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from vidsparse.kernels.engines.low_bit import Quantized
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.hopper import INTEGERS, _work, lists_of
from vidsparse.kernels.triton.hopper_rows import over_rows, row_max, row_sums, thread_sums
from vidsparse.kernels.triton.primitives import first_unmet, shared_strides
from vidsparse.kernels.triton.ring import phase_of, stage_of
from vidsparse.kernels.triton.tma import suits_tma
from vidsparse.kernels.triton.turns import allocate, counter, draw, hear, tell

TAKES_POOLED, LAYOUT = False, "interleaved"
KEYS = 128  # in a tile
STAGES = 4  # tiles in flight, a power of two
LOG2_448 = gl.constexpr(8.807354922057604)
LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _copy_keys(
    kd, listed, b, h, tile, last_slot, bar, ks, stage,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr,
):  # fmt: skip
    """Start the copies of a tile's keys."""
    SUBS: gl.constexpr = KV // SLOT
    for x in gl.static_range(BN // SLOT):
        slot = gl.minimum(tile * (BN // SLOT) + x, last_slot)
        key = gl.load(listed + slot // SUBS) * KV + (slot % SUBS) * SLOT
        to = ks.index(stage).slice(x * SLOT, SLOT, dim=2)
        tma.async_copy_global_to_shared(kd, [b, h, key, 0], bar, to)


@gluon.jit
def _copy_values(
    vd, listed, b, h, tile, last_slot, bar, vs, stage,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr,
):  # fmt: skip
    """Start the copies of a tile's values."""
    SUBS: gl.constexpr = KV // SLOT
    for x in gl.static_range(BN // SLOT):
        slot = gl.minimum(tile * (BN // SLOT) + x, last_slot)
        key = gl.load(listed + slot // SUBS) * KV + (slot % SUBS) * SLOT
        to = vs.index(stage * (BN // SLOT) + x)
        tma.async_copy_global_to_shared(vd, [b, h, 0, key], bar, to)


@gluon.jit
def _produce(
    qd, kd, vd, lists, sizes, turns, counter_ptr, qs, ks, vs, bars,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr,
    STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    """Copy what the consumers will read, a few stages ahead of them.

    A stage is what one step of theirs reads: the values of a tile and the keys of the next. So the
    first of a query tile has keys alone, and the last values alone.
    """
    q_full, q_empty, full, empty = bars
    tiles, tiles_per_head, heads, _q_len = sizes
    SLOTS: gl.constexpr = BN // SLOT
    step = 0
    done = 0
    t = gl.program_id(0)
    while t < tiles:
        t_next = draw(counter_ptr)
        i, b, h, listed, count, _width, num_tiles = _work(
            t, lists, heads, tiles_per_head, ROW_TILES, KV, BN
        )
        last_slot = gl.maximum(count * (KV // SLOT) - 1, 0)
        for w in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(w), (done & 1) ^ 1)
            mbarrier.expect(q_full.index(w), qd.block_type.nbytes)
            row = (i * CONSUMERS + w) * 64
            tma.async_copy_global_to_shared(qd, [b, h, row, 0], q_full.index(w), qs.index(w))
        tell(turns, done + 1, t_next)
        for n in range(num_tiles + 1):
            tile = num_tiles - 1 - n
            stage = stage_of(step, STAGES)
            mbarrier.wait(empty.index(stage), phase_of(step, STAGES) ^ 1)
            bar = full.index(stage)
            if n == 0:
                mbarrier.expect(bar, SLOTS * kd.block_type.nbytes)
            elif n < num_tiles:
                mbarrier.expect(bar, SLOTS * (kd.block_type.nbytes + vd.block_type.nbytes))
            else:
                mbarrier.expect(bar, SLOTS * vd.block_type.nbytes)
            if n < num_tiles:
                _copy_keys(kd, listed, b, h, tile, last_slot, bar, ks, stage, BN, SLOT, KV)
            if n > 0:
                _copy_values(vd, listed, b, h, tile + 1, last_slot, bar, vs, stage, BN, SLOT, KV)
            step += 1
        t = t_next
        done += 1


@gluon.jit
def _scale_at(scales, listed, tile, last_slot, SLOT: gl.constexpr, KV: gl.constexpr,
              SLOTS: gl.constexpr):  # fmt: skip
    """Scales of the key blocks of a tile."""
    SUBS: gl.constexpr = KV // SLOT
    found = ()
    for x in gl.static_range(SLOTS):
        slot = gl.minimum(gl.maximum(tile, 0) * SLOTS + x, last_slot)
        block = gl.load(listed + slot // SUBS) * SUBS + slot % SUBS
        found = found + (gl.load(scales + block),)  # noqa: RUF005 (not in Gluon)
    return found


@gluon.jit
def _times(row_scale, scales, SLOTS: gl.constexpr):
    """What the scores of each slot are multiplied by."""
    by = ()
    for x in gl.static_range(SLOTS):
        by = by + (row_scale * scales[x],)  # noqa: RUF005
    return by


@gluon.jit
def _by_column(values, like, SLOTS: gl.constexpr):
    """A row's value of each slot: ``[rows, 1]``, or ``[rows, columns]`` where it has several."""
    by = gl.expand_dims(values[0], 1)
    if SLOTS == 2:
        column = gl.arange(0, like.shape[1], gl.SliceLayout(0, like.type.layout))
        first = gl.expand_dims(column < like.shape[1] // 2, 0)
        by = gl.where(first, by, gl.expand_dims(values[1], 1))
    return by


@gluon.jit
def _halves(x):
    return x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute([0, 2, 1]).split()


@gluon.jit
def _peak(s, by, SLOTS: gl.constexpr):
    """Largest score of each row; integers are compared, and only the largest becomes a float."""
    ROWS: gl.constexpr = by[0].type.layout
    if SLOTS == 1:
        peak = row_max(s).to(gl.float32) * by[0]
    else:
        left, right = _halves(s)
        first = gl.convert_layout(row_max(left), ROWS, assert_trivial=True)
        second = gl.convert_layout(row_max(right), ROWS, assert_trivial=True)
        peak = gl.maximum(first.to(gl.float32) * by[0], second.to(gl.float32) * by[1])
    return peak


@gluon.jit
def _weights(s, by, m, SLOTS: gl.constexpr):
    """``448 * 2 ** (s * by - m)``."""
    return gl.exp2(s.to(gl.float32) * _by_column(by, s, SLOTS) - gl.expand_dims(m - LOG2_448, 1))


@gluon.jit
def _to_operand(p, WEIGHTS: gl.constexpr):
    """Weights as the next product takes them: in the same registers, columns renamed."""
    ROWS: gl.constexpr = p.shape[0]
    COLUMNS: gl.constexpr = p.shape[1]
    p = p.reshape([ROWS, COLUMNS // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4])
    p = gl.convert_layout(p.reshape([ROWS, COLUMNS]), WEIGHTS, assert_trivial=True)
    return gl.inline_asm_elementwise(
        """{
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
        }""",
        "=r,r,r,r,r", [p], dtype=gl.float8e4nv, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def _to_operands(p, WEIGHTS: gl.constexpr, SLOTS: gl.constexpr):
    """One operand for each slot of a tile."""
    if SLOTS == 1:
        operands = (_to_operand(p, WEIGHTS),)
    else:
        halves = _halves(p)
        operands = (_to_operand(halves[0], WEIGHTS), _to_operand(halves[1], WEIGHTS))
    return operands


@gluon.jit
def _multiply(
    q, weights, ks, vs, bars, blank, blank_out, step, more, m, row_scale, scale,
    BN: gl.constexpr, D: gl.constexpr, SLOT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Scores of the next tile, then values of this one, and the maxima with the next tile.

    Without ``more`` tiles the scores are of whatever lies there, and nobody may read them.
    """
    _q_full, _q_empty, full, empty = bars
    SLOTS: gl.constexpr = BN // SLOT
    stage = stage_of(step, STAGES)
    k = ks.index(stage).reshape([BN, D]).permute((1, 0))
    s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
    part = blank_out
    for x in gl.static_range(SLOTS):
        v = vs.index(stage * SLOTS + x).reshape([D, SLOT]).permute((1, 0))
        part = warpgroup_mma(weights[x], v, part, use_acc=x > 0, is_async=True)
    s = warpgroup_mma_wait(SLOTS, deps=(s,))
    by = _times(row_scale, scale, SLOTS)
    m_new = gl.maximum(m, _peak(s, by, SLOTS))
    # between the two waits, so that the compiler does not wait for values before it compares
    after = step + 1
    mbarrier.wait(full.index(stage_of(after, STAGES)), phase_of(after, STAGES), pred=more)
    part = warpgroup_mma_wait(0, deps=(part,))
    mbarrier.arrive(empty.index(stage), count=1)
    return s, part, by, m_new


@gluon.jit
def _consume(
    od, lse_ptr, scale_ptrs, lists, sizes, turns, qs, ks, vs, os, bars,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr,
    D: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr, W: gl.constexpr,
    HAS_LSE: gl.constexpr,
):  # fmt: skip
    """Attend for the 64 rows of consumer ``W``; scores are in base 2."""
    q_full, q_empty, full, empty = bars
    tiles, tiles_per_head, heads, q_len = sizes
    q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr, k_blocks, head_dim = scale_ptrs
    dtype: gl.constexpr = od.dtype
    SLOTS: gl.constexpr = BN // SLOT
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 32])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 32])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 4)
    ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
    step = 0
    done = 0
    blank = gl.zeros([64, BN], gl.int32, SCORES)
    blank_out = gl.zeros([64, D], gl.float32, OUT)
    t = gl.program_id(0)
    while t < tiles:
        i, b, h, listed, count, width, num_tiles = _work(
            t, lists, heads, tiles_per_head, ROW_TILES, KV, BN
        )
        row = (i * CONSUMERS + W) * 64
        rows = row + gl.arange(0, 64, gl.SliceLayout(1, SCORES))
        at = (b.to(gl.int64) * heads + h) * q_len + rows
        row_scale = gl.load(q_scale_ptr + at, mask=rows < q_len, other=1.0)
        scales = k_scale_ptr + (b * heads + h) * k_blocks
        last_slot = gl.maximum(count * (KV // SLOT) - 1, 0)
        scale = _scale_at(scales, listed, num_tiles - 1, last_slot, SLOT, KV, SLOTS)
        scale_next = _scale_at(scales, listed, num_tiles - 2, last_slot, SLOT, KV, SLOTS)
        mbarrier.wait(q_full.index(W), done & 1)
        mbarrier.wait(full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        q = qs.index(W).reshape([64, D])
        k = ks.index(stage_of(step, STAGES)).reshape([BN, D]).permute((1, 0))
        s = warpgroup_mma(q, k, blank, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(empty.index(stage_of(step, STAGES)), count=1)
        step += 1

        column = (num_tiles - 1) * BN + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        x = s.to(gl.float32) * _by_column(_times(row_scale, scale, SLOTS), s, SLOTS)
        x = gl.where(gl.expand_dims(column, 0) < width, x, float("-inf"))
        m = gl.max(x, 1)
        m = gl.where(m == float("-inf"), 0.0, m)
        p = gl.exp2(x - gl.expand_dims(m - LOG2_448, 1))
        l = thread_sums(p)
        weights = _to_operands(p, WEIGHTS, SLOTS)
        mbarrier.wait(full.index(stage_of(step, STAGES)), phase_of(step, STAGES))
        s, part, by, m_new = _multiply(
            q, weights, ks, vs, bars, blank, blank_out, step, num_tiles > 1, m, row_scale,
            scale_next, BN, D, SLOT, STAGES,
        )  # fmt: skip
        step += 1
        acc = gl.zeros([64, D], gl.float32, OUT)
        before = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        scale_next = _scale_at(scales, listed, num_tiles - 3, last_slot, SLOT, KV, SLOTS)
        for n in range(1, num_tiles):
            scale = scale_next
            scale_next = _scale_at(scales, listed, num_tiles - 3 - n, last_slot, SLOT, KV, SLOTS)
            acc = acc * gl.expand_dims(gl.convert_layout(before, ROWS), 1) + part
            before = gl.exp2(m - m_new)
            m = m_new
            p = _weights(s, by, m, SLOTS)
            l = l * over_rows(before, l) + thread_sums(p)
            weights = _to_operands(p, WEIGHTS, SLOTS)
            s, part, by, m_new = _multiply(
                q, weights, ks, vs, bars, blank, blank_out, step, n + 1 < num_tiles, m,
                row_scale, scale, BN, D, SLOT, STAGES,
            )  # fmt: skip
            step += 1
        mbarrier.arrive(q_empty.index(W), count=1)
        acc = acc * gl.expand_dims(gl.convert_layout(before, ROWS), 1) + part
        l = row_sums(l, gl.SliceLayout(1, SCORES))

        if HAS_LSE:
            shift = gl.load(shift_ptr + at, mask=rows < q_len, other=0.0)
            lse = (m - LOG2_448 + gl.log2(l)) * LN2 + shift
            gl.store(lse_ptr + at, lse, mask=rows < q_len)
        l = gl.convert_layout(l, ROWS)
        share = gl.where(l > 0, 1.0 / l, 0.0)
        dims = gl.arange(0, D, gl.SliceLayout(0, OUT))
        v_scale_at = v_scale_ptr + (b * heads + h) * head_dim + dims
        v_scale = gl.load(v_scale_at, mask=dims < head_dim, other=0.0)
        acc = acc * gl.expand_dims(share, 1) * gl.expand_dims(v_scale, 0)
        tma.store_wait(0)
        os.index(W).reshape([64, D]).store(acc.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(od, [b, h, row, 0], os.index(W))
        done += 1
        t = hear(turns, done, 4)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=[*INTEGERS, "k_blocks", "head_dim"])
def forward(
    qd, kd, vd, od, lse_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr,
    count_ptr, index_ptr, counter_ptr,
    count_b, count_h, index_b, index_h, index_m,
    tiles, tiles_per_head, heads, q_len, kv_len, k_blocks, head_dim,
    BN: gl.constexpr, SLOT: gl.constexpr, KV: gl.constexpr, ROW_TILES: gl.constexpr,
    D: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr, HAS_LSE: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attention under lists of key blocks, one program a multiprocessor."""
    dtype: gl.constexpr = od.dtype
    SLOTS: gl.constexpr = BN // SLOT
    qs = gl.allocate_shared_memory(gl.int8, [CONSUMERS, 1, 1, 64, D], qd.layout)
    ks = gl.allocate_shared_memory(gl.int8, [STAGES, 1, 1, BN, D], kd.layout)
    vs = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * SLOTS, 1, 1, D, SLOT], vd.layout)
    os = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, 1, 64, D], od.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(CONSUMERS):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=CONSUMERS)
    turns = allocate()
    fence_async_shared()
    bars = (q_full, q_empty, full, empty)
    lists = (count_ptr, index_ptr, kv_len, count_b, count_h, index_b, index_h, index_m)
    sizes = (tiles, tiles_per_head, heads, q_len)
    scale_ptrs = (q_scale_ptr, k_scale_ptr, v_scale_ptr, shift_ptr, k_blocks, head_dim)
    gl.warp_specialize(
        [
            (_consume, (od, lse_ptr, scale_ptrs, lists, sizes, turns, qs, ks, vs, os, bars,
                        BN, SLOT, KV, ROW_TILES, D, STAGES, CONSUMERS, 0, HAS_LSE)),
            (_consume, (od, lse_ptr, scale_ptrs, lists, sizes, turns, qs, ks, vs, os, bars,
                        BN, SLOT, KV, ROW_TILES, D, STAGES, CONSUMERS, 1, HAS_LSE)),
            (_produce, (qd, kd, vd, lists, sizes, turns, counter_ptr, qs, ks, vs, bars, BN,
                        SLOT, KV, ROW_TILES, STAGES, CONSUMERS)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 24],
    )  # fmt: skip


def fits(out: Tensor) -> dict[str, bool]:
    """Reasons not to write such an output, and whether what each asks for holds."""
    head_dim = out.shape[-1]
    return {
        "it writes fp16 or bf16": out.dtype in (torch.float16, torch.bfloat16),
        "head_dim is above 128 or no multiple of 16": head_dim <= 128 and head_dim % 16 == 0,
    }


def refuses(out: Tensor, plan: BlockPlan) -> str | None:
    """Why this kernel cannot run a call on a Hopper GPU, or None; needs no device sync."""
    reasons = fits(out) | {
        "blocks are of unequal size": plan.q_offsets is None and plan.kv_offsets is None,
        "the query block is no multiple of 128": plan.q_block % 128 == 0,
        "the key block is no multiple of 64": plan.kv_block % 64 == 0,
        "memory is not laid out for TMA": suits_tma(out),
    }
    return first_unmet(reasons)


def launch(
    x: Quantized,
    plan: BlockPlan,
    out: Tensor,
    *,
    return_lse: bool,
) -> Tensor | None:
    """Attend into ``out`` and return the log-sum-exp.

    Args:
        x: In ``LAYOUT``, with ``key_block`` 64 or 128 as ``key_block_of`` says.
        plan: One that the kernel does not refuse.
        out: ``(batch, heads, q_len, head_dim)``.
        return_lse: Whether to return the log-sum-exp.
    """
    assert x.key_block is not None
    batch, heads, q_len, head_dim = out.shape
    wide = 64 if head_dim <= 64 else 128
    lse = x.shift.new_empty((batch, heads, q_len)) if return_lse else None
    count, index = lists_of(plan)
    per_head = -(-q_len // 128)
    programs = torch.cuda.get_device_properties(out.device).multi_processor_count
    forward[(min(programs, per_head * batch * heads),)](
        descriptor(x.query, (64, wide)),
        descriptor(x.key, (x.key_block, wide)),
        descriptor(x.value.mT, (wide, x.key_block)),
        descriptor(out, (64, wide)),
        x.shift if lse is None else lse,
        x.query_scale,
        x.key_scale,
        x.value_scale,
        x.shift,
        count,
        index,
        counter(out.device),
        *shared_strides(count),
        *shared_strides(index),
        index.stride(2),
        per_head * batch * heads,
        per_head,
        heads,
        q_len,
        plan.kv_len,
        x.key_scale.shape[-1],
        head_dim,
        BN=KEYS,
        SLOT=x.key_block,
        KV=plan.kv_block,
        ROW_TILES=plan.q_block // 128,
        D=wide,
        STAGES=STAGES,
        CONSUMERS=2,
        HAS_LSE=return_lse,
        CONSUMER_REGISTERS=240,
        num_warps=4,
        maxnreg=168,
    )
    return lse


def descriptor(x: Tensor, box: tuple[int, int]) -> TensorDescriptor:
    """Boxes of the last two dimensions of a ``(batch, heads, ., .)`` tensor."""
    bits = 8 * x.element_size()
    swizzle = min(128, box[1] * x.element_size())
    layout = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=bits, rank=4)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, *box], layout)
