"""Auto: measure instead of believing.

For a few query rows of a call exact attention is known, so the true error of any plan on them is
known too. Each head takes the order in which its plan errs least; estimated costs are scaled, head
by head, to the error that was measured; and the layer gets the lowest density at which the relative
error of its output on the sampled rows stays under the tolerance. A plan is used again as long as
its error on freshly drawn rows stays there. What eight bits round is measured on the same rows, and
leaves so much less for what is skipped. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.head_sharing import all_of, own_of
from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.select import Lists, Ranking
from vidsparse.policies.choice import (
    COMPARED_AT,
    StaticEstimate,
    check_sampled_rows,
    choice_of,
    per_head,
)
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.lists import plan_of_lists
from vidsparse.policies.orders import Arranged
from vidsparse.policies.sampled import Candidate, Samples
from vidsparse.policies.scope import Scope, layer_budget, of_the_layer
from vidsparse.policies.selectors import Selection, Selector, comparable

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

SLACK = 1.25  # a plan at its limit on some rows is as often above it as below on others
LEAST, HALVINGS = 0.01, 6  # densities come from 64 steps, each 7 % more than the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance(Selector):
    """The cheapest budget of a layer whose error on sampled rows stays in bounds.

    Attributes:
        tolerance: Relative error of a layer's attention output on sampled rows that is allowed
            once the schedule has left the dense steps, in (0, 1]. Under a mean density it is where
            the search for the error of that density begins.
        sampled_rows: Query rows that the error is measured on.
    """

    tolerance: float | None = None
    sampled_rows: int = 64

    in_place_of_density: ClassVar[str | None] = "tolerance"
    judges_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tolerance is None:
            raise BadInputError(
                "selector=tolerance needs tolerance, the relative error to allow, in (0, 1]"
            )
        if not 0 < self.tolerance <= 1:
            raise BadInputError(f"tolerance must be in (0, 1], got {self.tolerance:g}")
        check_sampled_rows(self.sampled_rows)

    @property
    def has_amount(self) -> bool:
        """The tolerance says how much is kept."""
        return True

    @property
    def tolerance_of_purse(self) -> float | None:
        """Where the search for the error of a mean density begins."""
        return self.tolerance

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A mean density decides how much error there is."""
        if density is None:
            return {}
        return {"tolerance": "it follows from the mean density, so give one of the two"}

    def refuses(self, policy: Policy) -> str | None:
        """It knows the errors of what is skipped, and of what attends through its mean."""
        if not policy.compensation.measured:
            return "tolerance measures compensation none or centroid, no other"
        return None

    def select(self, these: Selection) -> Lists:
        """Buy the best blocks of the layer: what candidates are compared by."""
        return these.spend(comparable(these.estimate.scores, these.measure), Scope.LAYER)

    def measured(
        self, policy: Policy, inputs: Inputs, way: float, static: StaticEstimate
    ) -> tuple[Arranged, BlockPlan]:
        """The cheapest plan whose error on sampled rows stays under the tolerance.

        Args:
            policy: Its alternatives share one estimator, of mass or of cost.
            inputs: In raster order.
            way: How far the schedule has come from dense: the share of the tolerance.
            static: Remembers estimates that need no data.
        """
        samples = Samples.draw(inputs, self.sampled_rows)
        if policy.alternatives is not None:
            choice = choice_of(policy, inputs, COMPARED_AT, static, samples)
            arranged = per_head(inputs, policy.candidates, choice)
        else:
            arranged = policy.order.arrange(inputs)
        estimate = policy.estimate(arranged.inputs)
        scores = comparable(estimate.scores, policy.estimator.measure)
        candidate = samples.under(arranged, centroids=policy.compensation.through_means)
        search = _Search(scores, policy.always(arranged.inputs), arranged.inputs, candidate)
        search.scale_to_measured()
        density = search.lowest_density(self._allowed(candidate, inputs, way))
        if inputs.purse is not None:
            means = arranged.inputs.blocks.columns / inputs.blocks.grid.tokens
            besides = policy.pairs([1.0], [0.0], replan=1, means=means)[0]
            density = inputs.purse.bound(density, way, besides)
        return arranged, search.plan(density)

    def still_serves(
        self, policy: Policy, inputs: Inputs, arranged: Arranged, plan: BlockPlan, way: float
    ) -> Tensor:
        """Whether a plan of an earlier step stays near the tolerance on new rows, boolean ``()``.

        Args:
            policy: That made the plan.
            inputs: In raster order.
            arranged: In the plan's order.
            plan: What would be computed.
            way: As in ``measured``.
        """
        samples = Samples.draw(inputs, self.sampled_rows)
        candidate = samples.under(arranged, centroids=policy.compensation.through_means)
        error = all_of(inputs.share, candidate.error(plan.to_block_mask())).sum(dim=-1)
        return (error <= self._allowed(candidate, inputs, SLACK * way)).all()

    def _allowed(self, candidate: Candidate, inputs: Inputs, way: float) -> Tensor:
        """The squared error of what is skipped that is allowed, mean over rows, ``(batch,)``.

        That of the tolerance less what eight bits round, or that of a run's purse, whose tolerance
        is whatever the mean density takes.
        """
        power = _power(candidate, inputs)
        if inputs.purse is not None:
            return (inputs.purse.tolerance * way) ** 2 * power
        assert self.tolerance is not None
        allowed = (self.tolerance * way) ** 2 * power
        if inputs.eight_bits:
            allowed = (allowed - _rounding(candidate, inputs)).clamp(min=0)
        return allowed


def _rounding(candidate: Candidate, inputs: Inputs) -> Tensor:
    """Squared error of all keys in eight bits, of all heads, mean over rows, ``(batch,)``."""
    samples = candidate.samples
    _, k, v = inputs.qkv
    out, _ = low_bit_attention(samples.query, k, v, scale=inputs.scale)
    squares = (out.float() - samples.out).square().sum(dim=-1).mean(dim=-1)
    return all_of(inputs.share, squares).sum(dim=-1)


def _power(candidate: Candidate, inputs: Inputs) -> Tensor:
    """Squared norm of the exact output of all heads, mean over rows, ``(batch,)``."""
    of_heads = candidate.samples.out.square().sum(dim=-1).mean(dim=-1)
    return all_of(inputs.share, of_heads).sum(dim=-1)


class _Search:
    """Budgets of one layer, and their true errors.

    Scores and errors are of the heads that are here, budgets and their sums of all.
    """

    def __init__(
        self, scores: Tensor, always: Tensor, inputs: Inputs, candidate: Candidate
    ) -> None:
        self._scores = scores
        self._best = scores == scores.amax(dim=-1, keepdim=True)  # scaling a head leaves it so
        self._always = always
        self._inputs = inputs
        self._candidate = candidate

    def plan(self, density: Tensor) -> BlockPlan:
        """The best blocks of all heads; a density of each batch entry, ``(batch,)``."""
        lists = layer_budget(self._scores, self._always, self._inputs, density)
        return plan_of_lists(lists, self._inputs.blocks)

    def scale_to_measured(self) -> None:
        """Scale each head's costs by the ratio of the measured to the estimated error."""
        kept = self._keep(self._ranking(), COMPARED_AT)
        measured = self._candidate.error(kept)
        squares = self._scores.masked_fill(kept, 0.0).square()
        if self._inputs.blocks.kv_offsets is not None:  # what counts is a block's, not a key's
            squares = squares * self._inputs.blocks.kv_sizes.unsqueeze(-2)
        estimated = squares.sum(dim=-1).mean(dim=-1)
        ratio = (measured / estimated.clamp(min=1e-20)).sqrt()
        ratio = torch.where(ratio > 0, ratio, 1.0)  # a head that lost nothing has nothing to scale
        self._scores = self._scores * ratio[..., None, None]

    def lowest_density(self, allowed: Tensor) -> Tensor:
        """The lowest density whose squared error stays under what is allowed, ``(batch,)``."""
        ranking = self._ranking()
        low = torch.full_like(allowed, LEAST)
        high = torch.ones_like(allowed)
        for _ in range(HALVINGS):
            middle = (low * high).sqrt()
            error = self._candidate.error(self._keep(ranking, middle))
            fine = all_of(self._inputs.share, error).sum(dim=-1) <= allowed
            low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
        return high

    def _ranking(self) -> Ranking:
        scores, *sizes, always = of_the_layer(self._scores, self._always, self._inputs)
        return Ranking(scores, *sizes, always=always)

    def _keep(self, ranking: Ranking, density: float | Tensor) -> Tensor:
        """What a density buys, and the best block of every row."""
        kept = own_of(self._inputs.share, ranking.keep(density))
        return kept | (self._best & ~kept.any(dim=-1, keepdim=True))
