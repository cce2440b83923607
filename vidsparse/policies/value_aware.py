"""What skipping a block would cost: its mass times the distance of its values from the output."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.block_scores import block_value_error
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.exact import sampled_mass
from vidsparse.policies.pooled import pooled_mass, subblock_mass


class Mass(StrEnum):
    """Where an estimated mass comes from.

    Attributes:
        POOLED: Means of blocks or clusters.
        SUBBLOCK: Means of parts of blocks.
        ROWS: Exact scores of rows drawn at random.
    """

    POOLED = "pooled"
    SUBBLOCK = "subblock"
    ROWS = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueAware:
    """Mass x distance: ``P(i, j) |mean value of j - estimated output of i|``.

    The estimated output of query block i is the mass-weighted sum of block mean values, so this
    costs three small matrix products more than the mass.

    Attributes:
        mass: Where the mass P comes from.
        parts: Parts of a block, for ``subblock``: 1, 2, 4, 8 or 16.
        rows: Query rows drawn in each block, for ``rows``; 0 takes all.
    """

    mass: Mass = Mass.SUBBLOCK
    parts: int = 4
    rows: int = 8

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.COST

    def __post_init__(self) -> None:
        if self.parts not in (1, 2, 4, 8, 16):
            raise BadInputError(f"parts must be 1, 2, 4, 8 or 16, got {self.parts}")
        if self.rows < 0:
            raise BadInputError(f"rows must be at least 0, got {self.rows}")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the error of skipping it, ``(batch, heads, M, N)``."""
        error = block_value_error(self._log_mass(inputs), inputs.v_means)
        return Estimate(scores=per_key(error, inputs))

    def _log_mass(self, inputs: Inputs) -> Tensor:
        if self.mass is Mass.POOLED:
            return pooled_mass(inputs)
        if self.mass is Mass.SUBBLOCK:
            return subblock_mass(inputs, self.parts)
        return sampled_mass(inputs, self.rows).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """SVG-EAR's error of standing in for a block by its mean.

        E(i, j) = sum over k in j of |exp(q_i . k_j) v_j - exp(q_i . k) v_k|^2 / Z_i^2

    with the means q_i, k_j and v_j of clusters or blocks and the sum Z_i of ``exp(q_i . k)`` over
    all keys: the squared error of the output by what centroid compensation gets wrong. Scores are
    its roots. Costs as much as the scores of the means of all query clusters against all keys.
    """

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.COST

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the error of its stand-in, ``(batch, heads, M, N)``."""
        batch, heads = inputs.qkv[0].shape[:2]
        errors = [_routing_error(inputs, b, h) for b in range(batch) for h in range(heads)]
        error = torch.stack(errors).unflatten(0, (batch, heads))
        return Estimate(scores=per_key(error, inputs), log_mass=pooled_mass(inputs))


def per_key(error: Tensor, inputs: Inputs) -> Tensor:
    """Errors of blocks of unequal size over the roots of their sizes.

    Squared errors add up, and what a block costs is its size: the best buy for a budget is the most
    squared error a key.
    """
    if inputs.blocks.kv_offsets is None:
        return error
    return error * inputs.blocks.kv_sizes.clamp(min=1).rsqrt().unsqueeze(-2)


def _routing_error(inputs: Inputs, b: int, h: int) -> Tensor:
    """The errors of one head, ``(M, N)``; its scores against all keys are held at once."""
    key, value = (x[b, h].float() for x in inputs.qkv[1:])
    query, key_mean, value_mean = (
        x[b, h] for x in (inputs.q_means, inputs.k_means, inputs.v_means)
    )
    block = _block_of_position(inputs, b, h)
    scores = query @ key.T * inputs.scale
    mean_scores = query @ key_mean.T * inputs.scale
    top = torch.maximum(scores.amax(-1, keepdim=True), mean_scores.amax(-1, keepdim=True))
    weight, mean_weight = (scores - top).exp(), (mean_scores - top).exp()
    norm = value.square().sum(-1)
    along = (value * value_mean[block]).sum(-1)
    own = weight.square() * norm - 2 * weight * mean_weight[:, block] * along
    total = torch.zeros_like(mean_scores).index_add_(1, block, own)
    sizes = _of_head(inputs.blocks.kv_sizes, b, h)
    total += mean_weight.square() * value_mean.square().sum(-1) * sizes
    return total.clamp(min=0).sqrt() / weight.sum(-1, keepdim=True)


def _block_of_position(inputs: Inputs, b: int, h: int) -> Tensor:
    offsets = inputs.blocks.kv_offsets
    at = torch.arange(inputs.blocks.grid.tokens, device=inputs.blocks.device)
    if offsets is None:
        return at // inputs.blocks.block
    return torch.searchsorted(_of_head(offsets, b, h)[1:].contiguous().long(), at, right=True)


def _of_head(x: Tensor, b: int, h: int) -> Tensor:
    """One head's vector of one that may be shared."""
    if x.ndim == 1:
        return x
    return x[b % x.shape[0], h % x.shape[1]]
