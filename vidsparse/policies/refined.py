"""Many blocks by a cheap choice, of these a top-p by nearly exact scores: Twilight, 2502.02770."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.exact_mass import listed_mass
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.kernels.planning.select import Lists, select_top_k
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.scope import Scope
from vidsparse.policies.selectors import OfShare, Selection, TopP


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
        columns = scores.shape[-1]
        share = 1 - these.way * (1 - self.shortlist)
        least = round((these.density or 0.0) * columns)
        number = min(columns, max(these.least, least, math.ceil(share * columns)))
        lists = select_top_k(scores, number, always=these.always)
        mass = candidate_mass(inputs, *lists, self.bits)
        refined = dataclasses.replace(
            these, estimate=Estimate(scores=mass.log()), measure=Measure.LOG_MASS
        )
        return TopP(p=self.p, scope=Scope.HEAD).select(refined)


def candidate_mass(inputs: Inputs, count: Tensor, index: Tensor, bits: int) -> Tensor:
    """Mean attention of query blocks to key blocks, none of which sees but its candidates.

    Args:
        inputs: Of equal blocks.
        count: How many candidates each row has, ``(B|1, H|1, M)``.
        index: Which, ``(B|1, H|1, M, K)``.
        bits: Of the keys.

    Returns:
        Float32 ``(batch, heads, M, N)``; rows sum to one.
    """
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    return listed_mass(
        only_finite(q), in_bits(k.float(), bits).to(k.dtype), count, index,
        q_block=blocks.block, kv_block=blocks.kv_block, scale=inputs.scale,
    )  # fmt: skip


def in_bits(x: Tensor, bits: int) -> Tensor:
    """Each token's numbers rounded to ``2**bits`` steps from its smallest to its largest."""
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    step = (high - low).clamp(min=1e-20) / (2**bits - 1)
    return ((x - low) / step).round() * step + low
