"""Lists of kept blocks, as the selecting kernels make them, and the plans that they are."""

from __future__ import annotations

from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.select import Lists, select_threshold
from vidsparse.policies.blocks import Blocks


def lists_of_mask(keep: Tensor, least: int = 1) -> Lists:
    """The lists of a block mask, boolean ``(B|1, H|1, M, N)``."""
    return select_threshold(keep.float(), 0.5, min_count=least)


def plan_of_lists(lists: Lists, blocks: Blocks) -> BlockPlan:
    """The plan of lists over these blocks."""
    return BlockPlan(
        kv_count=lists[0],
        kv_index=lists[1],
        q_len=blocks.grid.tokens,
        kv_len=blocks.grid.tokens,
        q_block=blocks.block,
        kv_block=blocks.kv_block,
        q_offsets=blocks.q_offsets,
        kv_offsets=blocks.kv_offsets,
    )
