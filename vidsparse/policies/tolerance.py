"""Auto: measure instead of believing.

For a few query rows of a call exact attention is known, so the true error of any plan on them is
known too. Each head takes the order in which its plan errs least; estimated costs are scaled, head
by head, to the error that was measured; and the layer gets the lowest density at which the relative
error of its output on the sampled rows stays under the tolerance. Nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.select import select_budget
from vidsparse.policies.choice import StaticEstimate, choice_of, per_head
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged
from vidsparse.policies.policy import Policy, plan_of_lists
from vidsparse.policies.sampled import BlockSums, Samples
from vidsparse.policies.selectors import comparable

COMPARED_AT = 0.25  # density at which orders compete and costs are scaled
LEAST, HALVINGS = 0.03, 5  # densities come from 32 steps, each 11 % more than the last


def plan_within(
    policy: Policy, inputs: Inputs, tolerance: float, static: StaticEstimate
) -> tuple[Arranged, BlockPlan]:
    """The cheapest plan whose error on sampled rows stays under a tolerance.

    Args:
        policy: Its alternatives share one estimator, of mass or of cost.
        inputs: In raster order.
        tolerance: Relative error of the layer's attention output, in (0, 1).
        static: Remembers estimates that need no data.
    """
    samples = Samples.draw(inputs, policy.sampled_rows)
    if policy.alternatives:
        choice = choice_of(policy, inputs, COMPARED_AT, static, samples)
        arranged = per_head(inputs, policy.candidates, choice)
    else:
        arranged = policy.order.arrange(inputs)
    inputs = arranged.inputs
    scores = comparable(policy.estimator.estimate(inputs).scores, policy.estimator.measure)
    search = _Search(scores, policy.always(inputs), inputs, samples.sums(inputs))
    search.scale_to_measured()
    density = search.lowest_density(tolerance, samples.out)
    return arranged, search.plan(density)


class _Search:
    """Budgets of one layer, and their true errors."""

    def __init__(self, scores: Tensor, always: Tensor, inputs: Inputs, sums: BlockSums) -> None:
        self._scores = scores
        self._always = always
        self._blocks = inputs.blocks
        self._sums = sums

    def plan(self, density: float | Tensor) -> BlockPlan:
        """The best blocks of all heads; a density of each batch entry, ``(batch,)``."""
        sizes = self._blocks.sizes
        lists = select_budget(self._scores, sizes, sizes, density, always=self._always)
        return plan_of_lists(lists, self._blocks)

    def scale_to_measured(self) -> None:
        """Scale each head's costs by the ratio of the measured to the estimated error."""
        kept = self.plan(COMPARED_AT).to_block_mask()
        measured = self._sums.error(kept)
        estimated = self._scores.masked_fill(kept, 0.0).square().sum(dim=-1).mean(dim=-1)
        ratio = (measured / estimated.clamp(min=1e-20)).sqrt()
        ratio = torch.where(ratio > 0, ratio, 1.0)  # a head that lost nothing has nothing to scale
        self._scores = self._scores * ratio[..., None, None]

    def lowest_density(self, tolerance: float, out: Tensor) -> Tensor:
        """The lowest density whose relative error stays under the tolerance, ``(batch,)``."""
        power = out.square().sum(dim=-1).mean(dim=-1).sum(dim=-1)
        low = torch.full_like(power, LEAST)
        high = torch.ones_like(power)
        for _ in range(HALVINGS):
            middle = (low * high).sqrt()
            error = self._sums.error(self.plan(middle).to_block_mask()).sum(dim=-1)
            fine = error <= tolerance**2 * power
            low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
        return high
