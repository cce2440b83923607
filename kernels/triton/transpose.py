"""A plan seen from its keys: which blocks of queries read each block of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


def transpose_plan(plan: BlockPlan) -> tuple[Tensor, Tensor]:
    """Make the lists of query blocks that read each key block, without a host sync.

    Returns:
        Counts, int32 ``(B|1, H|1, N)``, which may be zero, and ascending indices, int32
        ``(B|1, H|1, N, M)``; what comes after the count is not read.
    """
    readers = plan.to_block_mask().mT.contiguous()
    index = (~readers).to(torch.uint8).argsort(dim=-1, stable=True)
    return readers.sum(dim=-1, dtype=torch.int32), index.to(torch.int32)
