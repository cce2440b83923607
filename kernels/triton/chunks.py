"""Chunks: key blocks of any size, cut into short pieces so that the kept ones fill whole tiles.

Each key block is cut every ``size`` positions; only its last chunk can be short. A query block's
list names the chunks of the key blocks it keeps, whole chunks before short ones, so that a kernel
masks only the tiles with short ones. Chunks are numbered in the order of their positions.

``C`` is at least the most chunks that there can be: a short one for each block, and whole ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class Chunks:
    """Chunks of the keys, and the list of each query block.

    Attributes:
        size: Positions in a whole chunk, a power of two.
        table: First position times ``2 * size``, plus length, int32 ``(B|1, H|1, C)``.
        index: The chunks of each query block, uint16 or int32 ``(B|1, H|1, M, C)``, whole tiles of
            them, at least one: behind the last chunk stands 0.
        whole: How many of a list's chunks are whole, int32 ``(B|1, H|1, M)``.
        count: How many chunks a list has, int32 ``(B|1, H|1, M)``.
        lengths: Lengths less one of the chunks of each tile from the first with a short one to the
            last, in any case of the last, int64, or int32 where it holds them,
            ``(B|1, H|1, M, T)``: ``log2(size)`` bits for each slot of a tile, the first the lowest;
            behind the last chunk, zero.
    """

    size: int
    table: Tensor
    index: Tensor
    whole: Tensor
    count: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Cuts:
    """How each key block is cut.

    Attributes:
        tokens: Tokens in each block, int32 ``(B|1, H|1, N)``.
        first: Number of each block's first chunk, int32 ``(B|1, H|1, N)``.
        owner: The block of each chunk, int64 ``(B|1, H|1, C)``; of those that are not, the last.
        table: As in ``Chunks``; chunks that are not have no length.
    """

    tokens: Tensor
    first: Tensor
    owner: Tensor
    table: Tensor


def block_edges(plan: BlockPlan) -> Tensor:
    """Where each key block starts, and the end of the last, int32 ``(B|1, H|1, N + 1)``."""
    if plan.kv_offsets is not None:
        return plan.kv_offsets
    edges = torch.arange(plan.num_kv_blocks + 1, dtype=torch.int32, device=plan.kv_count.device)
    return (edges * plan.kv_block).clamp(max=plan.kv_len).expand(1, 1, -1)


def cut_blocks(plan: BlockPlan, size: int) -> Cuts:
    """Number the chunks of all key blocks; see ``Cuts``."""
    edges = block_edges(plan)
    start, tokens = edges[..., :-1], edges.diff(dim=-1)
    number = (tokens + size - 1) // size
    ends = number.cumsum(dim=-1, dtype=torch.int32)
    capacity = plan.kv_len // size + tokens.shape[-1]
    chunk = torch.arange(capacity, dtype=torch.int32, device=ends.device)
    chunk = chunk.expand(*ends.shape[:2], -1)
    owner = torch.searchsorted(ends, chunk.contiguous(), right=True)
    owner = owner.clamp(max=tokens.shape[-1] - 1)
    inside = (chunk - (ends - number).gather(-1, owner)) * size
    length = (tokens.gather(-1, owner) - inside).clamp(0, size)
    table = (start.gather(-1, owner) + inside) * (2 * size) + length
    return Cuts(
        tokens=tokens.contiguous(),
        first=ends - number,
        owner=owner,
        table=table.to(torch.int32).where(length > 0, 0),
    )


def chunks_by_sorting(plan: BlockPlan, cuts: Cuts, size: int, slots: int) -> Chunks:
    """The lists, by a stable sort of whole, short and unread chunks; every chunk for every row."""
    mask = plan.to_block_mask()
    batch, heads = torch.broadcast_shapes(mask.shape[:2], cuts.owner.shape[:2])
    mask = mask.expand(batch, heads, -1, -1)
    length = (cuts.table % (2 * size))[:, :, None]
    owner = cuts.owner[:, :, None].expand(batch, heads, mask.shape[2], -1)
    kept = mask.gather(-1, owner) & (length > 0)
    rank = torch.where(kept, (length < size).int(), 2)
    index = rank.argsort(dim=-1, stable=True)
    whole, count = (rank == 0).sum(dim=-1), (rank < 2).sum(dim=-1)
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    index = torch.nn.functional.pad(index.where(used, 0), (0, -index.shape[-1] % slots))
    used = torch.nn.functional.pad(used, (0, index.shape[-1] - used.shape[-1]))
    less_one = length.expand(*index.shape[:3], -1).gather(-1, index).where(used, 1) - 1
    shift = torch.arange(slots, device=index.device) * (size.bit_length() - 1)
    packed = (less_one.unflatten(-1, (-1, slots)).long() << shift).sum(dim=-1)
    first = (whole // slots).minimum((count - 1).clamp(min=0) // slots)
    at = first[..., None] + torch.arange(packed.shape[-1], device=index.device)
    return Chunks(
        size=size,
        table=cuts.table,
        index=index.to(torch.int32),
        whole=whole.to(torch.int32),
        count=count.to(torch.int32),
        lengths=packed.gather(-1, at.clamp(max=packed.shape[-1] - 1)),
    )
