"""Lists of chunks on the device: one program writes the list of one query block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunks import Chunks, block_edges, chunks_by_token
from vidsparse.kernels.triton.primitives import shared_strides


def list_chunks(plan: BlockPlan, size: int, slots: int, *, impl: str = "auto") -> Chunks:
    """Cut the runs of kept key blocks of each query block and list their chunks.

    Args:
        plan: With key blocks of any size.
        size: Positions in a whole chunk, a power of two.
        slots: Chunks in a tile, a power of two; ``size`` to this power is at most ``2 ** 63``.
        impl: "triton", "reference", or "auto": Triton on CUDA.
    """
    if use_triton(impl, plan.kv_count):
        return _launch(plan, size, slots)
    return chunks_by_token(plan, size, slots)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _piece(index_ptr, edge_ptr, at, kept, carried, SIZE: tl.constexpr, BLOCKS: tl.constexpr):
    """Of some listed blocks: the whole chunks that end in each, and the short one of its run.

    Returns where the first of its whole chunks starts and how many there are, the same of a short
    one and its length (0 where the run goes on or leaves none), and where the last run starts.
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
    first = run + (start - run) // SIZE * SIZE
    number = (end - first) // SIZE
    rest = tl.where(valid & (end != after), (end - run) % SIZE, 0)
    number = tl.where(valid, number, 0)
    return first, number, end - rest, rest, tl.max(run, 0)


@triton.jit
def _write_lists(
    count_ptr, index_ptr, edge_ptr, list_ptr, whole_ptr, number_ptr, lengths_ptr,
    count_b, count_h, index_b, index_h, index_m, edge_b, edge_h, heads, capacity, most,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, BITS: tl.constexpr,
    BLOCKS: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr,
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
    whole = 0
    run = -1
    for at in tl.range(0, kept, BLOCKS):
        _, number, _, _, run = _piece(index_ptr, edge_ptr, at, kept, run, SIZE, BLOCKS)
        whole += tl.sum(number, 0)
    there = 0
    short_at = whole
    run = -1
    for at in tl.range(0, kept, BLOCKS):
        first, number, rest_at, rest, run = _piece(index_ptr, edge_ptr, at, kept, run, SIZE, BLOCKS)
        place = there + tl.cumsum(number, 0) - number
        for i in tl.range(0, tl.max(number, 0), WIDE):
            which = (i + tl.arange(0, WIDE))[None, :]  # [1, WIDE]
            entry = (first[:, None] + which * SIZE) * (2 * SIZE) + SIZE
            tl.store(list_ptr + place[:, None] + which, entry, mask=which < number[:, None])
        there += tl.sum(number, 0)
        short = (rest > 0).to(tl.int32)
        place = short_at + tl.cumsum(short, 0) - short
        tl.store(list_ptr + place, rest_at * (2 * SIZE) + rest, mask=short > 0)
        short_at += tl.sum(short, 0)
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
        length = tl.load(list_ptr + here, mask=here < short_at, other=1) % (2 * SIZE)
        less_one = (length - 1).to(lengths_ptr.dtype.element_ty)
        packed = tl.sum(less_one << (slot * BITS).to(lengths_ptr.dtype.element_ty), 1)
        tl.store(lengths_ptr + to * most + tile - masked, packed, mask=tile < tiles)


def _launch(plan: BlockPlan, size: int, slots: int) -> Chunks:
    """Run the kernel; arguments and result as in ``chunks_by_token``."""
    count, given = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    edges = block_edges(plan).contiguous()
    shapes = (given.shape[:2], count.shape[:2], edges.shape[:2])
    batch, heads = torch.broadcast_shapes(*shapes)
    rows, device = count.shape[-1], count.device
    runs = max(1, min((plan.num_kv_blocks + 1) // 2, given.shape[-1]))  # a gap is a block
    capacity = max(1, (plan.kv_len + (size - 1) * runs) // size)
    capacity = -(-capacity // slots) * slots
    bits = size.bit_length() - 1
    most = -(-(runs + slots - 1) // slots)
    index = torch.empty((batch, heads, rows, capacity), dtype=torch.int32, device=device)
    whole, number = (
        torch.empty((batch, heads, rows), dtype=torch.int32, device=device) for _ in range(2)
    )
    wide = torch.int32 if bits * slots <= 32 else torch.int64
    lengths = torch.empty((batch, heads, rows, most), dtype=wide, device=device)
    _write_lists[(rows, batch * heads)](
        count, given, edges, index, whole, number, lengths,
        *shared_strides(count), *shared_strides(given), given.stride(2), *shared_strides(edges),
        heads, capacity, most,
        SIZE=size, SLOTS=slots, BITS=bits, BLOCKS=128, WIDE=4, TILES=16, num_warps=4,
    )  # fmt: skip
    return Chunks(size=size, index=index, whole=whole, count=number, lengths=lengths)
