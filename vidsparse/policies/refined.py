"""Many blocks by a cheap choice, of these a top-p by nearly exact scores: Twilight, 2502.02770."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.kernels.planning.select import Lists, select_top_k
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.scope import Scope
from vidsparse.policies.selectors import OfShare, Selection, TopP

AT_ONCE = 1 << 24  # numbers of gathered keys at a time: 64 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined(OfShare):
    """Of each row's candidates, by any estimator, the fewest that hold a share of their mass.

    The mass is of exact queries and of keys in a few bits, between the smallest and the largest
    number of each; probabilities are of the candidates alone. It costs as much as the scores of
    the candidates, half of what attention to them does.

    Attributes:
        p: Share of the mass, in (0, 1]; a density replaces it, shared by need in each head.
        shortlist: Share of the key blocks that the estimator lets through, in (0, 1].
        bits: Of a number of a key, from 1 to 8.
    """

    p: float | None = 0.85
    shortlist: float = 0.5
    bits: int = 4

    takes_ranks: ClassVar[bool] = True
    takes_clusters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        OfShare.__post_init__(self)
        if not 0 < self.shortlist <= 1:
            raise BadInputError(f"shortlist must be in (0, 1], got {self.shortlist:g}")
        if not 1 <= self.bits <= 8:
            raise BadInputError(f"bits must be from 1 to 8, got {self.bits}")

    def select(self, these: Selection) -> Lists:
        """Keep the likeliest candidates."""
        scores, inputs = these.estimate.scores, these.inputs
        shape = (*inputs.qkv[0].shape[:2], *scores.shape[-2:])
        share = 1 - these.way * (1 - self.shortlist)
        least = round((these.density or 0.0) * shape[-1])
        number = min(shape[-1], max(these.least, least, math.ceil(share * shape[-1])))
        count, index = select_top_k(scores.expand(shape), number, always=these.always)
        mass = candidate_mass(inputs, index.long(), count, self.bits)
        refined = dataclasses.replace(
            these, estimate=Estimate(scores=mass.log()), measure=Measure.LOG_MASS
        )
        return TopP(p=self.p, scope=Scope.HEAD).select(refined)


def candidate_mass(inputs: Inputs, index: Tensor, count: Tensor, bits: int) -> Tensor:
    """Mean attention of query blocks to key blocks, none of which sees but its candidates.

    Args:
        inputs: Of equal blocks.
        index: Candidates of each row, int64 ``(batch, heads, M, K)``.
        count: How many they are, ``(batch, heads, M)``.
        bits: Of the keys.

    Returns:
        Float32 ``(batch, heads, M, N)``; rows sum to one.
    """
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    block, tokens = blocks.kv_block, blocks.grid.tokens
    missing = -tokens % block
    keys = torch.nn.functional.pad(in_bits(k.float(), bits), (0, 0, 0, missing))
    keys = keys.unflatten(2, (-1, block)).flatten(3)  # (B, H, N, block * D)
    first_of_head = torch.arange(keys.shape[0] * keys.shape[1], device=k.device) * keys.shape[2]
    first_of_head = first_of_head.view(*keys.shape[:2], 1, 1)
    there = torch.nn.functional.pad(torch.ones(tokens, device=k.device), (0, missing)) > 0
    there = there.unflatten(0, (-1, block))
    query = torch.nn.functional.pad(only_finite(q).float(), (0, 0, 0, -tokens % blocks.block))
    query = query.unflatten(2, (-1, blocks.block))
    used = torch.arange(index.shape[-1], device=k.device) < count[..., None]
    listed = index.where(used, 0)
    mass = torch.zeros(*index.shape[:3], blocks.columns, device=k.device)
    step = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * index.shape[-1] * keys.shape[-1]))
    for first in range(0, blocks.rows, step):
        at = slice(first, first + step)
        some = listed[:, :, at]
        place = (some + first_of_head).flatten()  # whole blocks: their numbers lie side by side
        near = keys.flatten(0, 2).index_select(0, place).view(*some.shape[:3], -1, k.shape[3])
        scores = (query[:, :, at] @ near.mT).mul_(inputs.scale)
        inside = (used[:, :, at, :, None] & there[some]).flatten(3)
        share = scores.masked_fill_(~inside.unsqueeze(3), -math.inf).softmax(dim=-1)
        sums = share.unflatten(-1, (-1, block)).sum(dim=-1)
        sums = (sums * _row_weights(inputs, at)[..., None]).sum(dim=3)
        mass[:, :, at] = mass[:, :, at].scatter_add(-1, some, sums.where(used[:, :, at], 0.0))
    return mass


def _row_weights(inputs: Inputs, at: slice) -> Tensor:
    """One over the tokens of each query block, zero for rows beyond the last, ``(rows, block)``."""
    blocks = inputs.blocks
    inside = torch.arange(blocks.block, device=blocks.device) < blocks.sizes[at, None]
    return inside / blocks.sizes[at, None]


def in_bits(x: Tensor, bits: int) -> Tensor:
    """Each token's numbers rounded to ``2**bits`` steps from its smallest to its largest."""
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    step = (high - low).clamp(min=1e-20) / (2**bits - 1)
    return ((x - low) / step).round() * step + low
