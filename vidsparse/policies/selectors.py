"""Selectors: from scores to the blocks that are kept, never fewer than the always-kept ones.

The rules themselves run on the device in ``kernels.select``; here is what they are fed. A score
compares within a row always, across rows and heads only as its measure allows.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from vidsparse.policies.estimator import Measure


class Selector(StrEnum):
    """How scores become a plan under a density.

    Attributes:
        TOP_K: The same number of blocks in every row.
        TOP_P: In every row the fewest blocks that hold a share of its mass.
        THRESHOLD: The estimator's own mask; under a density, the best blocks of each head's map.
        BUDGET: The best blocks of a whole layer or head, as many as the density pays for.
        TOLERANCE: The cheapest budget of a layer whose error on sampled rows stays in bounds.
    """

    TOP_K = "top_k"
    TOP_P = "top_p"
    THRESHOLD = "threshold"
    BUDGET = "budget"
    TOLERANCE = "tolerance"


class Scope(StrEnum):
    """Where the blocks of a density are shared by need.

    Attributes:
        HEAD: In each head's map.
        LAYER: In all heads of a layer.
    """

    HEAD = "head"
    LAYER = "layer"


class MassOf(StrEnum):
    """Of what ``top_p`` keeps a share.

    Attributes:
        ROW: Of the mass of each row.
        HEAD: Of that of a head's whole map.
    """

    ROW = "row"
    HEAD = "head"


def comparable(scores: Tensor, measure: Measure) -> Tensor:
    """Scores that compare across the rows of a layer, non-negative: a share of mass, or a cost."""
    if measure is Measure.LOG_MASS:
        return scores.float().softmax(dim=-1).nan_to_num(0.0)
    return scores


def mass_left(mass: Tensor, of: MassOf) -> Tensor:
    """The share of the row's (or head's) mass that a block and all worse ones hold, in (0, 1].

    Top-p keeps the blocks for which it is above 1 - p, so this is a score whose budget is one p for
    a whole head or layer. Summed from the worst block up: next to one, small shares would be lost.
    """
    flat = mass.flatten(-2) if of is MassOf.HEAD else mass
    ranked, order = flat.sort(dim=-1, stable=True)
    left = ranked.cumsum(dim=-1)
    left = left / left[..., -1:].clamp(min=1e-30)
    share = torch.empty_like(left).scatter_(-1, order, left)
    return share.unflatten(-1, mass.shape[-2:]) if of is MassOf.HEAD else share


def best_of_map(scores: Tensor, always: Tensor, sizes: Tensor, density: float) -> Tensor:
    """Keep the best blocks of each head's whole map, ties kept or dropped as one: for static masks.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better.
        always: Boolean, broadcastable to scores: kept whatever they score, and counted.
        sizes: Tokens in each block, ``(N,)``.
        density: Share of all query-key pairs, in (0, 1]. The best tie is kept even if it costs
            more.

    Returns:
        Boolean, shape of ``scores``.
    """
    sizes = sizes.long()  # whole numbers: sums of pairs do not fit float32
    cost = (sizes[:, None] * sizes).flatten()
    flat = scores.masked_fill(always, math.inf).flatten(-2)
    order = flat.argsort(dim=-1, descending=True)
    spent = cost[order].cumsum(-1)
    budget = int(density * int(sizes.sum()) ** 2 * (1 + 1e-9))
    affordable = (spent <= budget).sum(-1, keepdim=True)
    ranked = flat.gather(-1, order)
    last = ranked.gather(-1, (affordable - 1).clamp(min=0))
    beyond = ranked.gather(-1, affordable.clamp(max=flat.shape[-1] - 1))
    # a tie that the budget cuts through is dropped whole, unless it is the best one
    best = flat.masked_fill(flat.isinf(), -math.inf).amax(dim=-1, keepdim=True)
    split = (affordable < flat.shape[-1]) & (beyond == last) & (last < best)
    last = last.minimum(best)
    keep = torch.where(split, flat > last, flat >= last)
    return keep.unflatten(-1, scores.shape[-2:]) | always
