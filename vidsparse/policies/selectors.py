"""Selectors: from scores to the blocks that are kept, never fewer than the always-kept ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_k(scores: Tensor, always: Tensor, density: float) -> Tensor:
    """Keep the best blocks of each row, equally many in each.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better.
        always: Boolean ``(M, N)``: kept whatever they score, and counted.
        density: Share of the blocks of a row, in (0, 1]; at least one is kept.

    Returns:
        Boolean, shape of ``scores``.
    """
    number = scores.shape[-1]
    kept = min(number, max(1, round(density * number)))
    best = scores.masked_fill(always, math.inf).topk(kept, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) | always


def budget(scores: Tensor, always: Tensor, sizes: Tensor, density: float) -> Tensor:
    """Keep the best blocks of each head's whole map, as many pairs as the density pays for.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better; blocks that tie are kept or dropped as one.
        always: Boolean ``(M, N)``: kept whatever they score, and counted.
        sizes: Tokens in each block, ``(N,)``.
        density: Share of all query-key pairs, in (0, 1]. The best tie is kept even if it costs
            more.

    Returns:
        Boolean, shape of ``scores``.
    """
    cost = (sizes[:, None] * sizes).flatten()
    flat = scores.masked_fill(always, math.inf).flatten(-2)
    order = flat.argsort(dim=-1, descending=True)
    spent = cost[order].double().cumsum(-1)
    affordable = (spent <= density * float(sizes.sum()) ** 2 * (1 + 1e-9)).sum(-1, keepdim=True)
    ranked = flat.gather(-1, order)
    last = ranked.gather(-1, (affordable - 1).clamp(min=0))
    beyond = ranked.gather(-1, affordable.clamp(max=flat.shape[-1] - 1))
    # a tie that the budget cuts through is dropped whole, unless it is the best one
    best = flat.masked_fill(flat.isinf(), -math.inf).amax(dim=-1, keepdim=True)
    split = (affordable < flat.shape[-1]) & (beyond == last) & (last < best)
    last = last.minimum(best)
    keep = torch.where(split, flat > last, flat >= last)
    return keep.unflatten(-1, scores.shape[-2:]) | always


def threshold(scores: Tensor, always: Tensor, cutoff: float) -> Tensor:
    """Keep the blocks that score at least ``cutoff``, and the always-kept ones."""
    return (scores >= cutoff) | always
