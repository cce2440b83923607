"""Lists of chunks on the device: one program writes the list of one query block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunks import Chunks, Cuts, chunks_by_sorting, cut_blocks
from vidsparse.kernels.triton.primitives import shared_strides


def list_chunks(plan: BlockPlan, size: int, slots: int, *, impl: str = "auto") -> Chunks:
    """Cut the key blocks of a plan and list the chunks that each query block reads.

    Args:
        plan: With key blocks of any size.
        size: Positions in a whole chunk, a power of two.
        slots: Chunks in a tile, a power of two; ``size`` to this power is at most ``2 ** 63``.
        impl: "triton", "reference", or "auto": Triton on CUDA.
    """
    cuts = cut_blocks(plan, size)
    if use_triton(impl, plan.kv_count):
        return _launch(plan, cuts, size, slots)
    return chunks_by_sorting(plan, cuts, size, slots)


@triton.jit
def _write_lists(
    count_ptr, index_ptr, tokens_ptr, first_ptr, table_ptr,
    list_ptr, whole_ptr, number_ptr, lengths_ptr,
    count_b, count_h, index_b, index_h, index_m, cut_b, cut_h, table_b, table_h,
    heads, capacity, most,
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
    tokens_ptr += b * cut_b + h * cut_h
    first_ptr += b * cut_b + h * cut_h
    list_ptr += to * capacity
    lane = tl.arange(0, BLOCKS)
    whole = 0
    for start in tl.range(0, kept, BLOCKS):
        valid = start + lane < kept
        block = tl.load(index_ptr + start + lane, mask=valid, other=0)
        whole += tl.sum(tl.load(tokens_ptr + block, mask=valid, other=0) // SIZE, 0)
    at = 0
    short_at = whole
    for start in tl.range(0, kept, BLOCKS):
        valid = start + lane < kept
        block = tl.load(index_ptr + start + lane, mask=valid, other=0)
        tokens = tl.load(tokens_ptr + block, mask=valid, other=0)
        first = tl.load(first_ptr + block, mask=valid, other=0)
        number = tokens // SIZE
        there = at + tl.cumsum(number, 0) - number
        for i in tl.range(0, tl.max(number, 0), WIDE):
            which = (i + tl.arange(0, WIDE))[None, :]  # [1, WIDE]
            chunk = (first[:, None] + which).to(list_ptr.dtype.element_ty)
            tl.store(list_ptr + there[:, None] + which, chunk, mask=which < number[:, None])
        at += tl.sum(number, 0)
        short = (tokens % SIZE > 0).to(tl.int32)
        there = short_at + tl.cumsum(short, 0) - short
        chunk = (first + number).to(list_ptr.dtype.element_ty)
        tl.store(list_ptr + there, chunk, mask=short > 0)
        short_at += tl.sum(short, 0)
    tiles = tl.maximum((short_at + SLOTS - 1) // SLOTS, 1)
    pad = short_at + tl.arange(0, SLOTS)
    zero = tl.zeros([SLOTS], list_ptr.dtype.element_ty)
    tl.store(list_ptr + pad, zero, mask=pad < tiles * SLOTS)
    tl.store(whole_ptr + to, whole)
    tl.store(number_ptr + to, short_at)
    tl.debug_barrier()  # what other threads have listed is read now
    table_ptr += b * table_b + h * table_h
    masked = tl.minimum(whole // SLOTS, tiles - 1)
    for start in tl.range(masked, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        slot = tl.arange(0, SLOTS)[None, :]
        here = tile[:, None] * SLOTS + slot  # [TILES, SLOTS]
        listed = tl.load(list_ptr + here, mask=here < short_at, other=0).to(tl.int32)
        length = tl.load(table_ptr + listed, mask=here < short_at, other=1) % (2 * SIZE)
        less_one = (length - 1).to(lengths_ptr.dtype.element_ty)
        packed = tl.sum(less_one << (slot * BITS).to(lengths_ptr.dtype.element_ty), 1)
        tl.store(lengths_ptr + to * most + tile - masked, packed, mask=tile < tiles)


def _launch(plan: BlockPlan, cuts: Cuts, size: int, slots: int) -> Chunks:
    """Run the kernel; arguments and result as in ``chunks_by_sorting``."""
    count, given = plan.kv_count.contiguous(), plan.kv_index.contiguous()
    shapes = (given.shape[:2], count.shape[:2], cuts.tokens.shape[:2])
    batch, heads = torch.broadcast_shapes(*shapes)
    rows, device = count.shape[-1], count.device
    blocks = max(1, min(cuts.tokens.shape[-1], given.shape[-1]))
    capacity = max(1, min(cuts.table.shape[-1], (plan.kv_len + (size - 1) * blocks) // size))
    capacity = -(-capacity // slots) * slots
    bits = size.bit_length() - 1
    most = -(-(blocks + slots - 1) // slots)
    # two bytes for a chunk wherever they hold its number: the lists are the memory this costs
    dtype = torch.uint16 if cuts.table.shape[-1] <= 1 << 16 else torch.int32
    index = torch.empty((batch, heads, rows, capacity), dtype=dtype, device=device)
    whole, number = (
        torch.empty((batch, heads, rows), dtype=torch.int32, device=device) for _ in range(2)
    )
    wide = torch.int32 if bits * slots <= 32 else torch.int64
    lengths = torch.empty((batch, heads, rows, most), dtype=wide, device=device)
    _write_lists[(rows, batch * heads)](
        count, given, cuts.tokens, cuts.first, cuts.table,
        index, whole, number, lengths,
        *shared_strides(count), *shared_strides(given), given.stride(2),
        *shared_strides(cuts.tokens), *shared_strides(cuts.table), heads, capacity, most,
        SIZE=size, SLOTS=slots, BITS=bits, BLOCKS=128, WIDE=4, TILES=16, num_warps=4,
    )  # fmt: skip
    return Chunks(
        size=size, table=cuts.table, index=index, whole=whole, count=number, lengths=lengths
    )
