"""Turns a policy and a density into block plans, and remembers the ones that need no data."""

from __future__ import annotations

import dataclasses

from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.estimator import Estimate, Inputs
from vidsparse.policies.policy import Policy
from vidsparse.state import Memory

REMEMBERED = 16  # static plans: a ramp of 16 steps at one size, or several sizes without a ramp


class Planner:
    """Makes the plans of one policy.

    Args:
        policy: What to compute at full sparsity.

    Attributes:
        notes: Sentences the user should read, such as a density that could not be met.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._plans = Memory(REMEMBERED, BlockPlan.nbytes)
        self._estimates = Memory(2, lambda estimate: estimate.scores.nbytes)
        self._densities = Memory(REMEMBERED, lambda density: 0)
        self.notes: dict[str, None] = {}

    def target(self, inputs: Inputs) -> float:
        """Density at full sparsity: the policy's own, or that of its estimator's mask."""
        if self.policy.density is not None:
            return self.policy.density
        return self._densities.get(
            inputs.blocks.grid, lambda: self._static_plan(inputs, None).density
        )

    def plan(self, inputs: Inputs, density: float) -> BlockPlan:
        """What to compute under a density in (0, 1); no pooled stand-ins yet."""
        policy = self.policy
        if not policy.estimator.needs_data:
            own_mask = policy.density is None and density <= self.target(inputs)
            return self._static_plan(inputs, None if own_mask else density)
        estimate = policy.estimator.estimate(inputs)
        return policy.plan(policy.keep(estimate, inputs, density), inputs)

    def nbytes(self) -> int:
        """Bytes remembered."""
        return self._plans.nbytes() + self._estimates.nbytes()

    def _static_plan(self, inputs: Inputs, density: float | None) -> BlockPlan:
        blocks = inputs.blocks
        layer = inputs.layer if self.policy.estimator.per_layer else 0
        geometry = (blocks.grid, str(blocks.device), layer, inputs.heads)
        inputs = dataclasses.replace(inputs, layer=layer)

        def estimate() -> Estimate:
            return self.policy.estimator.estimate(inputs)

        def plan() -> BlockPlan:
            keep = self.policy.keep(self._estimates.get(geometry, estimate), inputs, density)
            made = self.policy.plan(keep, inputs)
            asked = self.policy.density  # on a ramp, other densities only pass by
            if asked is not None and density == asked and made.density > 1.05 * asked:
                self.notes.setdefault(
                    f"density {made.density:.2f} is the least that this mask allows on the grid "
                    f"{blocks.grid} with blocks of {blocks.block}; {asked:.2f} was asked for"
                )
            return made

        return self._plans.get((geometry, density), plan)
