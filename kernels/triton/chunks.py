"""Chunks: runs of kept keys, cut into short pieces that fill whole tiles.

Key blocks of any size that a query block keeps and that follow one another are one run. Each run is
cut every ``size`` positions; only its last chunk can be short. A query block's list names its
chunks, whole ones before short ones, so that a kernel masks only the tiles with short ones.

Or runs are cut where positions are multiples of ``size``: then the first can be short too.

``C`` is at least the most chunks that there can be: short ones for each run, and whole ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class Chunks:
    """The list of chunks of each query block.

    Attributes:
        size: Positions in a whole chunk, a power of two.
        index: Each chunk's first position times ``2 * size``, plus its length, int32
            ``(B|1, H|1, M, C)``: whole chunks in the order of their positions, then short ones;
            whole tiles of them, at least one, filled with 0. Of aligned chunks, the multiple of
            ``size`` times ``size ** 2``, plus how many positions are cut off before, plus ``size``
            times how many behind.
        whole: How many of a list's chunks are whole, int32 ``(B|1, H|1, M)``.
        count: How many chunks a list has, int32 ``(B|1, H|1, M)``.
        masks: What says which keys of a tile are seen, of each from the first with a short chunk
            to the last, in any case of the last: the lengths less one of its chunks, int64, or
            int32 where it holds them, ``(B|1, H|1, M, T)``, ``log2(size)`` bits for each slot of a
            tile, the first the lowest; behind the last chunk, zero. Of aligned chunks a bit for
            each key of a tile of 128, int32 ``(B|1, H|1, M, T, 4)``: bit ``2 g + c`` of word
            ``t`` is of key ``8 g + 2 t + c``, as four threads of a Hopper consumer hold scores.
        aligned: Whether chunks start at multiples of ``size``.
    """

    size: int
    index: Tensor
    whole: Tensor
    count: Tensor
    masks: Tensor
    aligned: bool = False


def block_edges(plan: BlockPlan) -> Tensor:
    """Where each key block starts, and the end of the last, int32 ``(B|1, H|1, N + 1)``."""
    if plan.kv_offsets is not None:
        return plan.kv_offsets
    edges = torch.arange(plan.num_kv_blocks + 1, dtype=torch.int32, device=plan.kv_count.device)
    return (edges * plan.kv_block).clamp(max=plan.kv_len).expand(1, 1, -1)


def chunks_by_token(plan: BlockPlan, size: int, slots: int, aligned: bool = False) -> Chunks:
    """The lists, from what every query block says of every key."""
    position = torch.arange(plan.kv_len, dtype=torch.int32, device=plan.kv_count.device)
    kept = _kept_tokens(plan, position)
    here = position.expand(kept.shape)
    before = torch.nn.functional.pad(kept, (1, -1))
    start = here.where(kept & ~before, -1).cummax(dim=-1).values
    end = here.where(~kept, plan.kv_len).flip(-1).cummin(dim=-1).values.flip(-1)
    if aligned:
        cut = here % size
        first = kept & ((cut == 0) | (here == start))
        length = torch.minimum(end - here, size - cut)
        entry = (here - cut) * size**2 + (size - cut - length) * size + cut
    else:
        first = kept & ((here - start) % size == 0)
        length = (end - here).clamp(max=size)
        entry = here * (2 * size) + length
    rank = torch.where(first, (length < size).int(), 2)
    order = rank.argsort(dim=-1, stable=True)
    whole, count = (rank == 0).sum(dim=-1), (rank < 2).sum(dim=-1)
    used = torch.arange(order.shape[-1], device=order.device) < count[..., None]
    index = entry.gather(-1, order).where(used, 0)
    index = torch.nn.functional.pad(index, (0, -index.shape[-1] % slots))
    return Chunks(
        size=size,
        index=index,
        whole=whole.to(torch.int32),
        count=count.to(torch.int32),
        masks=_masks(index, whole, count, size, slots, aligned),
        aligned=aligned,
    )


def _kept_tokens(plan: BlockPlan, position: Tensor) -> Tensor:
    """Which keys each query block keeps, boolean ``(B|1, H|1, M, kv_len)``."""
    mask, edges = plan.to_block_mask(), block_edges(plan)
    batch, heads = torch.broadcast_shapes(mask.shape[:2], edges.shape[:2])
    mask, edges = mask.expand(batch, heads, -1, -1), edges.expand(batch, heads, -1)
    owner = torch.searchsorted(
        edges[..., 1:].contiguous(), position.expand(batch, heads, -1).contiguous(), right=True
    )
    return mask.gather(-1, owner[:, :, None].expand(-1, -1, mask.shape[2], -1))


def _masks(
    index: Tensor, whole: Tensor, count: Tensor, size: int, slots: int, aligned: bool
) -> Tensor:
    """``Chunks.masks``, for as many tiles as there can be."""
    if aligned:
        packed = _seen(index % size**2, count, size, slots)
    else:
        less_one = (index % (2 * size) - 1).clamp(min=0).unflatten(-1, (-1, slots))
        shift = torch.arange(slots, device=index.device) * (size.bit_length() - 1)
        packed = (less_one.long() << shift).sum(dim=-1)[..., None]
    first = (whole // slots).minimum((count - 1).clamp(min=0) // slots)
    at = first[..., None] + torch.arange(packed.shape[-2], device=index.device)
    at = at.clamp(max=packed.shape[-2] - 1)[..., None].expand_as(packed)
    return packed.gather(-2, at).squeeze(-1)


def _seen(cut: Tensor, count: Tensor, size: int, slots: int) -> Tensor:
    """The bits of each tile of 128 keys, int32 ``(.., tiles, 4)``."""
    key = torch.arange(size, device=cut.device)
    before, behind = (cut % size)[..., None], (cut // size)[..., None]
    seen = (key >= before) & (key < size - behind)
    seen &= (torch.arange(cut.shape[-1], device=cut.device) < count[..., None])[..., None]
    tiles = seen.flatten(-2).unflatten(-1, (-1, size * slots // 8, 4, 2))  # .., group, lane, two
    bits = tiles.transpose(-3, -2).flatten(-2).long()
    word = (bits << torch.arange(bits.shape[-1], device=cut.device)).sum(dim=-1)
    return word.to(torch.uint32).view(torch.int32)
