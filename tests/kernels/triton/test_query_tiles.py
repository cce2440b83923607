"""Tiles of queries: every row once, in an order that a walk over the plan confirms."""

from itertools import pairwise

import pytest
import torch

from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.query_tiles import query_tiles


@pytest.mark.parametrize("q_blocks", [None, 1, 5, 90])
@pytest.mark.parametrize("shared", [False, True])
def test_every_row_is_in_one_tile_of_its_block_and_heads_follow_one_another(
    oracle, device, q_blocks, shared
):
    batch, heads, q_len = 2, 3, 211
    of = (1, 1) if shared else (batch, heads)
    plan = oracle.plan(*of, q_len, 150, 48, 16, q_blocks=q_blocks, kv_blocks=9, device=device)
    if shared and q_blocks:
        assert plan.q_offsets.shape[1] == 1
    chunks = list_chunks(plan, 16, 8)
    tiles, total = query_tiles(plan, chunks, batch, heads, 32)
    assert int(total) <= len(tiles)
    taken = tiles[: int(total)].tolist()
    rows = torch.zeros(batch * heads, q_len, dtype=torch.int32)
    for head, listed, start, end, whole, count in taken:
        b, h = divmod(head, heads)
        rows[head, start : min(start + 32, end)] += 1
        edges = [
            [column[0], column[-1] + 1]
            for column in oracle.block_tokens(q_len, 48, plan.q_offsets, b, h)
            if column
        ]
        row = next(m for m, (first, last) in enumerate(edges) if first <= start < last)
        assert end == edges[row][1]
        lists = chunks.count.flatten(0, 1)
        shape = chunks.count.shape
        assert listed // shape[2] == (b % shape[0]) * shape[1] + h % shape[1]
        assert (whole, count) == (
            int(chunks.whole.flatten()[listed]),
            int(lists.flatten()[listed]),
        )
    assert (rows == 1).all()
    order = [(tile[0], -tile[5]) for tile in taken]
    assert all(before <= after for before, after in pairwise(order))
