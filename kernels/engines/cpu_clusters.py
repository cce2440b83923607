"""Attention under a plan of unequal blocks, a query block at a time: for clusters, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, Pooled, block_of_token

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]


def attend_clusters(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """Gather the keys of each query block and attend to them, stand-ins beside them.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: Like k.
        plan: With offsets.
        scale: Score scale.
        attend: Attention of one query block, with a bias a key.

    Returns:
        The output, and the log-sum-exp where ``attend`` gives one.
    """
    batch, heads = q.shape[:2]
    masks = plan.to_block_mask().expand(batch, heads, -1, -1)
    starts = _offsets(plan.q_offsets, plan.q_len, plan.q_block, batch, heads)
    blocks = block_of_token(plan.kv_len, plan.kv_block, plan.kv_offsets)
    blocks = blocks.to(q.device).expand(batch, heads, -1)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    for b in range(batch):
        for h in range(heads):
            key, value, kept = k[b, h], v[b, h], masks[b, h]
            read, bias = kept[:, blocks[b, h]], None
            if plan.pooled is not None:
                key, value, read, bias = _with_means(key, value, read, kept, plan.pooled, b, h)
            rows = read.nonzero()[:, 1].split(read.sum(dim=1).tolist())
            for (start, stop), row in zip(starts[b][h], rows, strict=True):
                if start == stop or not len(row):
                    continue
                result, sums = attend(
                    q[b, h, start:stop][None, None],
                    key.index_select(0, row)[None, None],
                    value.index_select(0, row)[None, None],
                    None if bias is None else bias[row][None, None, None],
                    scale,
                )
                out[b, h, start:stop] = result[0, 0]
                if sums is not None:
                    lse[b, h, start:stop] = sums[0, 0]
    return out, lse


def _with_means(
    key: Tensor, value: Tensor, read: Tensor, kept: Tensor, pooled: Pooled, b: int, h: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The means of all blocks after the tokens of one head, read where a block is skipped.

    Returns:
        Keys, values, what each query block reads of them, and their bias: ``ln(size)`` for means.
    """
    size = pooled.size.expand(*pooled.key.shape[:2], -1)[b, h]
    return (
        torch.cat([key, pooled.key[b, h].to(key.dtype)]),
        torch.cat([value, pooled.value[b, h].to(value.dtype)]),
        torch.cat([read, ~kept & (size > 0)], dim=1),
        torch.cat([key.new_zeros(len(key)), size.log().to(key.dtype)]),
    )


def _offsets(
    offsets: Tensor | None, length: int, block: int, batch: int, heads: int
) -> list[list[list[tuple[int, int]]]]:
    """First and last token of each query block, by batch entry and head."""
    if offsets is None:
        edges = [*range(0, length, block), length]
        return [[list(pairwise(edges))] * heads] * batch
    found = offsets.expand(batch, heads, -1).tolist()
    return [[list(pairwise(e)) for e in entry] for entry in found]
