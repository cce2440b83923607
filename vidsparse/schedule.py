"""The schedule: how much is computed at each noise level and in each layer."""

from __future__ import annotations

from dataclasses import dataclass

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Dense while noise is high, then a ramp down to the policy's density.

    Progress is measured in noise level sigma, 1 for pure noise and 0 for the finished video, never
    by counting calls, so runs of 4 and of 50 steps share a schedule. Between the two levels below,
    the density falls in a straight line of sigma: most of a run whose timesteps are shifted, as
    video models shift them, is spent at a high sigma.

    Attributes:
        dense_above: Steps with a sigma above this are dense, in [0, 1].
        full_below: Steps with a sigma of at most this run at the policy's density; must not exceed
            ``dense_above``. Equal to it, the ramp is a switch.
        dense_layers: The first so many layers are always dense.
        budgets: A JSON file with a density for each layer, or each head of it, at full sparsity.
        replan: A layer's plan is made anew after so many steps; in between it is used again, once
            the ramp has come to its end. Under compensation residual each new plan, from then on,
            costs a dense step.
        share_branches: Guidance branches that run one after the other use one order and one plan,
            made by the first of a step. Guidance multiplies what their errors differ in, and
            errors of the same plan are alike; it also halves the cost of planning. Their texts may
            differ in length: after the video, and where blocks are clusters before it too.
    """

    dense_above: float = 0.95
    full_below: float = 0.8
    dense_layers: int = 0
    replan: int = 1
    share_branches: bool = True
    budgets: Budgets | None = None

    def __post_init__(self) -> None:
        for name in ("dense_above", "full_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(f"{name} is a noise level in [0, 1], got {getattr(self, name)}")
        if self.full_below > self.dense_above:
            raise BadInputError(
                f"full_below ({self.full_below}) must not exceed dense_above ({self.dense_above})"
            )
        if self.dense_layers < 0:
            raise BadInputError(f"dense_layers must be at least 0, got {self.dense_layers}")
        if self.replan < 1:
            raise BadInputError(f"replan must be at least 1, got {self.replan}")

    def way(self, sigma: float, layer: int) -> float:
        """How far a call has come from dense, 0, to full sparsity, 1.

        Args:
            sigma: Noise level of the step.
            layer: Index of the layer, from 0.
        """
        if layer < self.dense_layers or sigma > self.dense_above:
            return 0.0
        if sigma <= self.full_below:
            return 1.0
        return (self.dense_above - sigma) / (self.dense_above - self.full_below)

    def density(self, sigma: float, layer: int, target: float) -> float:
        """Share of query-key pairs to compute.

        Args:
            sigma: Noise level of the step.
            layer: Index of the layer, from 0.
            target: Density of the policy at full sparsity.
        """
        way = self.way(sigma, layer)
        return target if way >= 1.0 else 1.0 - way * (1.0 - target)
