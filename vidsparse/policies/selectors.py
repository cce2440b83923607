"""Selectors: from scores to the blocks that are kept, never fewer than the always-kept ones.

The rules themselves run on the device in ``kernels.select``; here is what they are fed. A score
compares within a row always, across rows and heads only as its measure allows. The selector that
measures instead of believing its scores has a file of its own, ``tolerance.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.select import (
    Lists,
    select_row_budget,
    select_threshold,
    select_top_k,
    select_top_p,
)
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.lists import lists_of_mask, plan_of_lists
from vidsparse.policies.orders import Arranged
from vidsparse.policies.part import Part
from vidsparse.policies.scope import Scope, spend
from vidsparse.policies.work import Kernel, Work

if TYPE_CHECKING:
    from vidsparse.policies.choice import StaticEstimate
    from vidsparse.policies.policy import Policy


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What blocks are selected from.

    Attributes:
        estimate: Of the blocks.
        measure: What its scores mean.
        always: Kept whatever it scores, boolean, broadcastable to the scores.
        inputs: What the estimator saw.
        least: Blocks that every row keeps at least.
        density: Share of the pairs to keep; None leaves it to the selector or the estimator.
        way: How far the schedule has come from dense, in (0, 1].
    """

    estimate: Estimate
    measure: Measure
    always: Tensor
    inputs: Inputs
    least: int
    density: float | None
    way: float

    def spend(self, scores: Tensor, scope: Scope) -> Lists:
        """Buy the best blocks for the density."""
        assert self.density is not None
        return spend(scores, self.always, self.inputs, self.density, self.least, scope)


class Selector(Part, ABC):
    """Turns scores into lists of blocks."""

    __slots__ = ()

    takes_ranks: ClassVar[bool] = False
    """Whether scores need be no more than an order within a head's map."""
    takes_masks: ClassVar[bool] = False
    """Whether it keeps the estimator's own mask where there is no density."""
    takes_clusters: ClassVar[bool] = True
    """Whether blocks may be of unequal size."""
    equal_rows: ClassVar[bool] = False
    """Whether every row keeps equally many blocks, and more of them under a higher density."""
    keeps_diagonal: ClassVar[bool] = True
    """Whether an equal block of queries always sees its own keys."""
    reuses_plans: ClassVar[bool] = True
    """Whether what it selects is all in a plan, which then serves another call."""
    per_token: ClassVar[bool] = False
    """Whether each token has blocks of its own: it then runs plans, by ``attend``."""
    judges_batches: ClassVar[bool] = False
    """Whether it decides at once, for all entries of a batch, that a plan serves another step."""

    @property
    def has_amount(self) -> bool:
        """Whether its own parameters say how much is kept, so that it needs no density."""
        return False

    def further(self, share: float) -> Selector | None:
        """The same, keeping so much more of each row's mass; None of one that does not go by that.

        Args:
            share: Of the mass, at full sparsity.
        """
        return None

    @property
    def tolerance_of_purse(self) -> float | None:
        """The tolerance that a mean density moves; None of a selector that takes a density."""
        return None

    def attend(self, work: Work, kernel: Kernel, *, way: float) -> tuple[Tensor, Tensor]:
        """Run a plan, in the place of ``Compensation.attend``; where blocks are of tokens."""
        raise NotImplementedError

    @abstractmethod
    def select(self, these: Selection) -> Lists: ...

    def measured(
        self, policy: Policy, inputs: Inputs, way: float, static: StaticEstimate
    ) -> tuple[Arranged, BlockPlan] | None:
        """The order and plan of a call, by measuring; None of a selector that goes by scores."""
        return None

    def still_serves(
        self, policy: Policy, inputs: Inputs, arranged: Arranged, plan: BlockPlan, way: float
    ) -> Tensor | None:
        """Whether a plan of an earlier step is good enough, boolean ``()``; None if unmeasured."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Selector):
    """The same number of blocks in every row."""

    takes_ranks: ClassVar[bool] = True
    equal_rows: ClassVar[bool] = True

    def select(self, these: Selection) -> Lists:
        """Keep the best of every row."""
        assert these.density is not None
        count = round(these.density * these.estimate.scores.shape[-1])
        return select_top_k(these.estimate.scores, max(these.least, count), always=these.always)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfShare(Selector):
    """Keeps a share of something, or what a density says.

    Attributes:
        p: The share, in (0, 1]; a density replaces it.
    """

    p: float | None = None

    def __post_init__(self) -> None:
        if self.p is not None and not 0 < self.p <= 1:
            raise BadInputError(f"p must be in (0, 1], got {self.p:g}")

    @property
    def has_amount(self) -> bool:
        """Whether there is a share."""
        return self.p is not None

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density says how much is kept."""
        if density is None:
            return {}
        return {"p": "the density says how much is kept, so give one of the two"}


class MassOf(StrEnum):
    """Of what ``top_p`` keeps a share.

    Attributes:
        ROW: Of the mass of each row.
        HEAD: Of that of a head's whole map.
    """

    ROW = "row"
    HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopP(OfShare):
    """In every row the fewest blocks that hold a share of its mass.

    Under a density, up to the share that meets it. Where scores and mass are two things, the keys
    that the mass pays for are spent by score.

    Attributes:
        p: Share of the mass, in (0, 1]; a density replaces it.
        mass_of: Of what it is a share: of the mass of each row, or of a whole head.
        scope: Where one share serves under a density: in each head, or in all heads of a layer.
    """

    mass_of: MassOf = MassOf.ROW
    scope: Scope = Scope.LAYER

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A share of the mass is kept, or a density, which alone is shared by need."""
        if density is None:
            return {"scope": "it is of a density, and here p says how much is kept"}
        return OfShare.idle(self, density)

    def refuses(self, policy: Policy) -> str | None:
        """It needs one of the two."""
        if self.p is None and policy.any_density is None:
            return "selector=top_p needs p, the share of the mass to keep in (0, 1], or a density"
        return None

    def select(self, these: Selection) -> Lists:
        """Keep the likeliest blocks."""
        estimate = these.estimate
        counted = estimate.log_mass is not None
        source = estimate.log_mass if estimate.log_mass is not None else estimate.scores
        lists = self._likeliest(
            these, comparable(source, Measure.LOG_MASS if counted else these.measure)
        )
        if not counted:
            return lists
        blocks = these.inputs.blocks
        kept = plan_of_lists(lists, blocks).to_block_mask()
        tokens = (kept * blocks.kv_sizes.unsqueeze(-2)).sum(dim=-1)
        return select_row_budget(estimate.scores, blocks.kv_sizes, tokens, always=these.always)

    def _likeliest(self, these: Selection, mass: Tensor) -> Lists:
        if these.density is not None:
            return these.spend(mass_left(mass, self.mass_of), self.scope)
        assert self.p is not None
        p = 1.0 - these.way * (1.0 - self.p)
        if self.mass_of is MassOf.HEAD:
            left = mass_left(mass, self.mass_of)
            return select_threshold(left, 1.0 - p, min_count=these.least, always=these.always)
        return select_top_p(mass, p, min_count=these.least, always=these.always)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Selector):
    """The estimator's own mask; under a density, the best blocks of each head's map."""

    takes_ranks: ClassVar[bool] = True
    takes_masks: ClassVar[bool] = True
    takes_clusters: ClassVar[bool] = False

    def select(self, these: Selection) -> Lists:
        """Keep what scores above the threshold, or the best of the map."""
        estimate = these.estimate
        if these.density is None or estimate.spent:
            assert estimate.threshold is not None
            threshold = estimate.threshold / (these.way if estimate.scales else 1.0)
            return select_threshold(
                estimate.scores, threshold, min_count=these.least, always=these.always
            )
        scores = comparable(estimate.scores, these.measure)
        blocks = these.inputs.blocks
        keep = best_of_map(
            scores, these.always, blocks.sizes, these.density, tokens=blocks.grid.tokens
        )
        return lists_of_mask(keep, these.least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Selector):
    """The best blocks of a whole layer or head, as many as the density pays for.

    Attributes:
        scope: Where they are shared by need: among all heads of a layer, or in each head.
    """

    scope: Scope = Scope.LAYER

    def select(self, these: Selection) -> Lists:
        """Buy the best blocks."""
        return these.spend(comparable(these.estimate.scores, these.measure), self.scope)


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


def best_of_map(
    scores: Tensor, always: Tensor, sizes: Tensor, density: float, *, tokens: int | None = None
) -> Tensor:
    """Keep the best blocks of each head's whole map, ties kept or dropped as one: for static masks.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better.
        always: Boolean, broadcastable to scores: kept whatever they score, and counted.
        sizes: Tokens in each block, ``(N,)``.
        density: Share of all query-key pairs, in (0, 1]. The best tie is kept even if it costs
            more.
        tokens: Their sum, where it is known; else it is read from the device, which waits.

    Returns:
        Boolean, shape of ``scores``.
    """
    sizes = sizes.long()  # whole numbers: sums of pairs do not fit float32
    cost = (sizes[:, None] * sizes).flatten()
    flat = scores.masked_fill(always, math.inf).flatten(-2)
    order = flat.argsort(dim=-1, descending=True)
    spent = cost[order].cumsum(-1)
    tokens = int(sizes.sum()) if tokens is None else tokens
    budget = int(density * tokens**2 * (1 + 1e-9))
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
