"""What skipping a block would cost: its mass times the distance of its values from the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.block_scores import block_value_error
from vidsparse.kernels.planning.stand_in_error import stand_in_error
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.exact import sampled_mass
from vidsparse.policies.pooled import pooled_mass, subblock_mass

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


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
class ValueAware(Estimator):
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
    takes_clusters: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.COST

    def __post_init__(self) -> None:
        if self.parts not in (1, 2, 4, 8, 16):
            raise BadInputError(f"parts must be 1, 2, 4, 8 or 16, got {self.parts}")
        if self.rows < 0:
            raise BadInputError(f"rows must be at least 0, got {self.rows}")

    def idle(self, density: float | None) -> Mapping[str, str]:
        """``parts`` and ``rows`` belong to one source of the mass each."""
        of = {"parts": Mass.SUBBLOCK, "rows": Mass.ROWS}
        return {
            name: f"it belongs to mass={mass}, and mass is {self.mass}"
            for name, mass in of.items()
            if mass is not self.mass
        }

    def refuses(self, policy: Policy) -> str | None:
        """Rows are drawn in equal blocks."""
        if self.mass is Mass.ROWS and policy.order.makes_clusters:
            return "mass=rows draws rows in equal blocks, and a semantic order makes clusters"
        return None

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
class Routing(Estimator):
    """SVG-EAR's error of standing in for a block by its mean.

        E(i, j) = sum over k in j of |exp(q_i . k_j) v_j - exp(q_i . k) v_k|^2 / Z_i^2

    with the means q_i, k_j and v_j of clusters or blocks and the sum Z_i of ``exp(q_i . k)`` over
    all keys: the squared error of the output by what centroid compensation gets wrong. Scores are
    its roots. Costs as much as the scores of the means of all query clusters against all keys.
    """

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    takes_clusters: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.COST

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the error of its stand-in, ``(batch, heads, M, N)``."""
        _, k, v = inputs.qkv
        offsets = inputs.blocks.kv_starts
        means = inputs.q_means, inputs.k_means, inputs.v_means
        error = stand_in_error(means[0], k, v, *means[1:], offsets, scale=inputs.scale)
        return Estimate(scores=per_key(error, inputs), log_mass=pooled_mass(inputs))


def per_key(error: Tensor, inputs: Inputs) -> Tensor:
    """Errors of blocks of unequal size over the roots of their sizes.

    Squared errors add up, and what a block costs is its size: the best buy for a budget is the most
    squared error a key.
    """
    if inputs.blocks.kv_offsets is None:
        return error
    return error * inputs.blocks.kv_sizes.clamp(min=1).rsqrt().unsqueeze(-2)
