"""Tiles of queries, each within one query block."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunks import Chunks


def query_tiles(
    plan: BlockPlan, chunks: Chunks, batch: int, heads: int, queries: int
) -> tuple[Tensor, Tensor]:
    """Cut query blocks into tiles: head by head, since one head fills the cache, long lists first.

    Args:
        plan: Of the queries.
        chunks: Of the keys, on the plan's device.
        batch: Of the call.
        heads: Of the call.
        queries: Rows in a tile.

    Returns:
        int32 ``(most tiles, 6)``: which of ``batch * heads``, which list, the first row, the end of
        its block, whole chunks, and all chunks; and how many tiles there are, int32 ``(1,)``, which
        only the device knows.
    """
    device, rows = chunks.count.device, chunks.count.shape[-1]
    if plan.q_offsets is None:
        edges = torch.arange(rows + 1, dtype=torch.int32, device=device) * plan.q_block
        edges = edges.clamp(max=plan.q_len).expand(batch, heads, -1)
    else:
        edges = plan.q_offsets.expand(batch, heads, -1)
    shape = (batch, heads, rows)
    facts = torch.stack(
        [
            _number(shape[:2], device)[..., None].expand(shape),
            _number(chunks.count.shape, device).expand(shape),
            edges[..., :-1],
            edges[..., 1:],
            chunks.whole.expand(shape),
            chunks.count.expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)
    longest = chunks.index.shape[-1] + 1
    facts = facts[(facts[:, 0].long() * longest - facts[:, 5]).argsort()]
    number = (facts[:, 3] - facts[:, 2] + queries - 1) // queries
    ends = number.cumsum(dim=0, dtype=torch.int32)
    most = batch * heads * (-(-plan.q_len // queries) + rows)
    tile = torch.arange(most, dtype=torch.int32, device=device)
    row = torch.searchsorted(ends, tile, right=True).clamp(max=len(facts) - 1)
    tiles = facts[row]
    tiles[:, 2] += (tile - (ends - number)[row]) * queries
    return tiles, ends[-1:]


class RowTiles(NamedTuple):
    """Tiles of queries in the order of the sequence, each within one query block.

    Attributes:
        row: Block of each tile, int32 ``(B|1, H|1, number)``; None for blocks of one size.
        start: First position of each.
        end: End of its block.
        number: Tiles of a head.
    """

    row: Tensor | None
    start: Tensor | None
    end: Tensor | None
    number: int


def tiles_of_rows(plan: BlockPlan, queries: int) -> RowTiles:
    """Cut query blocks into tiles of so many rows.

    How many tiles blocks of unequal size need is not known here, only that it is no more than
    ``q_len // queries + M``; those not needed have row M.
    """
    if plan.q_offsets is None:
        return RowTiles(None, None, None, plan.num_q_blocks * -(-plan.q_block // queries))
    starts, sizes = plan.q_offsets[..., :-1], plan.q_offsets.diff(dim=-1)
    ends = ((sizes + queries - 1) // queries).cumsum(dim=-1, dtype=torch.int32)
    number = plan.q_len // queries + sizes.shape[-1]
    tile = torch.arange(number, dtype=torch.int32, device=ends.device).expand(*ends.shape[:2], -1)
    row = torch.searchsorted(ends, tile.contiguous(), right=True, out_int32=True)
    inside = row.clamp(max=sizes.shape[-1] - 1).long()
    first = (ends - (sizes + queries - 1) // queries).gather(-1, inside)
    start = (starts.gather(-1, inside) + (tile - first) * queries).to(torch.int32).contiguous()
    end = plan.q_offsets[..., 1:].gather(-1, inside).to(torch.int32).contiguous()
    return RowTiles(row, start, end, number)


@triton.jit
def rows_of_tile(
    tile, tiles_at, row_ptr, start_ptr, end_ptr, q_len,
    BM: tl.constexpr, Q_BLOCK: tl.constexpr, HAS_TILES: tl.constexpr,
):  # fmt: skip
    """The query block of a tile, its first position and the end of its block; see RowTiles."""
    if HAS_TILES:
        row = tl.load(row_ptr + tiles_at + tile)
        start = tl.load(start_ptr + tiles_at + tile)
        end = tl.load(end_ptr + tiles_at + tile)
    else:
        PER_ROW: tl.constexpr = (Q_BLOCK + BM - 1) // BM
        row = tile // PER_ROW
        start = row * Q_BLOCK + (tile % PER_ROW) * BM
        end = tl.minimum((row + 1) * Q_BLOCK, q_len)
    return row, start, end


def _number(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Entries counted from zero, in int32."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=device).view(shape)
