"""Lists of chunks on the device: one program writes the list of one query block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunks import Chunks, block_edges, chunks_by_token
from vidsparse.kernels.triton.primitives import shared_strides


def list_chunks(
    plan: BlockPlan, size: int, slots: int, *, aligned: bool = False, impl: str = "auto"
) -> Chunks:
    """Cut the runs of kept key blocks of each query block and list their chunks.

    Args:
        plan: With key blocks of any size.
        size: Positions in a whole chunk, a power of two.
        slots: Chunks in a tile, a power of two; ``size`` to this power is at most ``2 ** 63``;
            8 of 16 where they are aligned.
        aligned: Whether chunks start at multiples of ``size``.
        impl: "triton", "reference", or "auto": Triton on CUDA.
    """
    if use_triton(impl, plan.kv_count):
        return _launch(plan, size, slots, aligned)
    return chunks_by_token(plan, size, slots, aligned)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _piece(
    index_ptr, edge_ptr, at, kept, carried,
    SIZE: tl.constexpr, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Of some listed blocks: the whole chunks that end in each, and the short ones of its run.

    Returns where the first of its whole chunks starts and how many there are; the entry of a short
    one at the start of its run that ends in it, of one at the end (-1 where there is none); and
    where the last run starts.
    """
    lane = at + tl.arange(0, BLOCKS)
    valid = lane < kept
    block = tl.load(index_ptr + lane, mask=valid, other=0)
    previous = tl.load(index_ptr + lane - 1, mask=valid & (lane > 0), other=0)
    following = tl.load(index_ptr + lane + 1, mask=lane + 1 < kept, other=0)
    start = tl.load(edge_ptr + block, mask=valid, other=0)
    end = tl.load(edge_ptr + block + 1, mask=valid, other=0)
    before = tl.load(edge_ptr + previous + 1, mask=valid & (lane > 0), other=-1)
    after = tl.load(edge_ptr + following, mask=lane + 1 < kept, other=-1)
    run = tl.associative_scan(tl.where(valid & (start != before), start, -1), 0, _larger)
    run = tl.maximum(run, carried)  # where the run of each starts
    ends = valid & (end != after)
    none = tl.full([BLOCKS], -1, tl.int32)
    if ALIGNED:
        first = start // SIZE * SIZE
        cut = tl.maximum(run - first, 0)
        head = tl.where(valid & (cut > 0) & (first + SIZE <= end), first * (SIZE * SIZE) + cut, -1)
        first = tl.where(cut > 0, first + SIZE, first)
        last = end // SIZE * SIZE
        number = tl.maximum(last - first, 0) // SIZE
        cut = tl.maximum(run - last, 0)
        entry = last * (SIZE * SIZE) + (SIZE - (end - last)) * SIZE + cut
        tail = tl.where(ends & (end > tl.maximum(run, last)), entry, none)
    else:
        first = run + (start - run) // SIZE * SIZE
        number = (end - first) // SIZE
        rest = (end - run) % SIZE
        head = none
        tail = tl.where(ends & (rest > 0), (end - rest) * (2 * SIZE) + rest, none)
    number = tl.where(valid, number, 0)
    return first, number, head, tail, tl.max(run, 0)


@triton.jit
def _write_lists(
    count_ptr, index_ptr, edge_ptr, list_ptr, whole_ptr, number_ptr, masks_ptr,
    count_b, count_h, index_b, index_h, index_m, edge_b, edge_h, heads, capacity, most,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, BITS: tl.constexpr,
    BLOCKS: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Walk over a row's key blocks twice: the short chunks stand where the whole ones end."""
    row = tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    to = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + row
    kept = tl.load(count_ptr + b * count_b + h * count_h + row)
    index_ptr += b * index_b + h * index_h + row.to(tl.int64) * index_m
    edge_ptr += b * edge_b + h * edge_h
    list_ptr += to * capacity
    UNIT: tl.constexpr = SIZE * SIZE if ALIGNED else 2 * SIZE  # of an entry's position
    WHOLE: tl.constexpr = 0 if ALIGNED else SIZE
    whole = 0
    run = -1
    for at in tl.range(0, kept, BLOCKS):
        _, number, _, _, run = _piece(index_ptr, edge_ptr, at, kept, run, SIZE, BLOCKS, ALIGNED)
        whole += tl.sum(number, 0)
    there = 0
    short_at = whole
    run = -1
    for at in tl.range(0, kept, BLOCKS):
        first, number, head, tail, run = _piece(
            index_ptr, edge_ptr, at, kept, run, SIZE, BLOCKS, ALIGNED
        )
        place = there + tl.cumsum(number, 0) - number
        for i in tl.range(0, tl.max(number, 0), WIDE):
            which = (i + tl.arange(0, WIDE))[None, :]  # [1, WIDE]
            entry = (first[:, None] + which * SIZE) * UNIT + WHOLE
            tl.store(list_ptr + place[:, None] + which, entry, mask=which < number[:, None])
        there += tl.sum(number, 0)
        heads_here, short = (head >= 0).to(tl.int32), (tail >= 0).to(tl.int32)
        place = short_at + tl.cumsum(heads_here + short, 0) - short
        if ALIGNED:
            tl.store(list_ptr + place - 1, head, mask=head >= 0)
        tl.store(list_ptr + place, tail, mask=tail >= 0)
        short_at += tl.sum(heads_here + short, 0)
    tiles = tl.maximum((short_at + SLOTS - 1) // SLOTS, 1)
    pad = short_at + tl.arange(0, SLOTS)
    tl.store(list_ptr + pad, tl.zeros([SLOTS], tl.int32), mask=pad < tiles * SLOTS)
    tl.store(whole_ptr + to, whole)
    tl.store(number_ptr + to, short_at)
    tl.debug_barrier()  # what other threads have listed is read now
    masked = tl.minimum(whole // SLOTS, tiles - 1)
    for start in tl.range(masked, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        slot = tl.arange(0, SLOTS)[None, :]
        here = tile[:, None] * SLOTS + slot  # [TILES, SLOTS]
        entry = tl.load(list_ptr + here, mask=here < short_at, other=1)
        if ALIGNED:
            before, end = entry % SIZE, SIZE - entry // SIZE % SIZE
            end = tl.where(here < short_at, end, 0)
            for lane in tl.static_range(4):
                bits = tl.zeros([TILES, SLOTS], tl.int32)
                for x in tl.static_range(4):  # four of a chunk's keys are a thread's
                    key = x // 2 * 8 + lane * 2 + x % 2
                    bits = bits | (((key >= before) & (key < end)).to(tl.int32) << x)
                word = tl.sum(bits << (slot * 4), 1)
                tl.store(
                    masks_ptr + (to * most + tile - masked) * 4 + lane, word, mask=tile < tiles
                )
        else:
            less_one = (entry % UNIT - 1).to(masks_ptr.dtype.element_ty)
            packed = tl.sum(less_one << (slot * BITS).to(masks_ptr.dtype.element_ty), 1)
            tl.store(masks_ptr + to * most + tile - masked, packed, mask=tile < tiles)


def _launch(plan: BlockPlan, size: int, slots: int, aligned: bool) -> Chunks:
    """Run the kernel; arguments and result as in ``chunks_by_token``."""
    count, given = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    edges = block_edges(plan).contiguous()
    shapes = (given.shape[:2], count.shape[:2], edges.shape[:2])
    batch, heads = torch.broadcast_shapes(*shapes)
    rows, device = count.shape[-1], count.device
    short = max(1, min((plan.num_kv_blocks + 1) // 2, given.shape[-1]))  # of runs: a gap is a block
    short *= 2 if aligned else 1  # both ends
    capacity = max(1, (plan.kv_len + (size - 1) * short) // size)
    capacity = -(-capacity // slots) * slots
    bits = size.bit_length() - 1
    most = -(-(short + slots - 1) // slots)
    index = torch.empty((batch, heads, rows, capacity), dtype=torch.int32, device=device)
    whole, number = (
        torch.empty((batch, heads, rows), dtype=torch.int32, device=device) for _ in range(2)
    )
    wide = torch.int32 if aligned or bits * slots <= 32 else torch.int64
    shape = (batch, heads, rows, most, 4) if aligned else (batch, heads, rows, most)
    masks = torch.empty(shape, dtype=wide, device=device)
    _write_lists[(rows, batch * heads)](
        count, given, edges, index, whole, number, masks,
        *shared_strides(count), *shared_strides(given), given.stride(2), *shared_strides(edges),
        heads, capacity, most,
        SIZE=size, SLOTS=slots, BITS=bits, BLOCKS=128, WIDE=4, TILES=16, ALIGNED=aligned,
        num_warps=4,
    )  # fmt: skip
    return Chunks(size=size, index=index, whole=whole, count=number, masks=masks, aligned=aligned)
