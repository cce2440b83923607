"""A policy: an order, an estimator, a selector and a compensation, which make block plans."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.heads import all_of, own_of
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.select import (
    Lists,
    select_budget,
    select_row_budget,
    select_threshold,
    select_top_k,
    select_top_p,
)
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.compensation import Compensation
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.observed import Observed
from vidsparse.policies.orders import Axes, Hilbert, Order, Raster
from vidsparse.policies.radial import Radial
from vidsparse.policies.selectors import (
    MassOf,
    Scope,
    Selector,
    best_of_map,
    comparable,
    mass_left,
)


class Anchor(StrEnum):
    """Which pairs with the first latent frame are always computed.

    Attributes:
        NONE: None because of that frame.
        KEYS: All queries see its keys.
        QUERIES: Its queries see all keys.
        BOTH: Both.
    """

    NONE = "none"
    KEYS = "keys"
    QUERIES = "queries"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another order and estimator that a head may take.

    Attributes:
        order: Where tokens are put.
        estimator: Scores the blocks.
    """

    order: Order
    estimator: Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What to compute at full sparsity.

    Attributes:
        order: Where tokens are put before blocks are cut.
        estimator: Scores the blocks.
        selector: How blocks are kept under a density.
        scope: Where the blocks of a density are shared by need, under ``budget`` and ``top_p``:
            among all heads of a layer, or in each head by itself.
        mass_of: Of what ``top_p`` keeps a share: of the mass of each row, or of a whole head.
        compensation: What is done for the blocks that are skipped.
        density: Share of query-key pairs that are computed once the schedule has left the dense
            steps, in (0, 1]. None leaves it to ``p`` or to the estimator's own mask.
        p: Share of the mass that ``top_p`` keeps, in (0, 1]; not used under a density.
        floor: Share of the key blocks that every row keeps at least, in [0, 1].
        anchor: Which pairs with the first latent frame are always computed.
        rotate: Share of the key blocks that every row keeps besides, others at every step, in
            [0, 1): against flicker, and the way back for blocks that were skipped.
        block: Tokens in a block of queries and of keys: a multiple of 16, from 16 to 256.
        alternatives: Other orders and estimators; each head takes what errs least on sampled rows.
        choose_every: Steps until heads choose anew; 0 chooses once in a generation.
        sampled_rows: Query rows that the error is measured on.
        tolerance: Relative error of a layer's attention output on sampled rows that ``tolerance``
            allows once the schedule has left the dense steps, in (0, 1].
        level2: Share of the key blocks that ``levels`` reads as means of 2 tokens, in [0, 1].
        level4: The same, of 4 tokens.
        level8: The same, of 8 tokens.
    """

    order: Order = Raster()  # noqa: RUF009 it is frozen
    estimator: Estimator
    selector: Selector = Selector.TOP_K
    scope: Scope = Scope.LAYER
    mass_of: MassOf = MassOf.ROW
    compensation: Compensation = Compensation.NONE
    density: float | None = None
    p: float | None = None
    floor: float = 0.0
    anchor: Anchor = Anchor.NONE
    rotate: float = 0.0
    block: int = 64
    alternatives: tuple[Alternative, ...] = ()
    choose_every: int = 1
    sampled_rows: int = 64
    level2: float = 0.0
    level4: float = 0.0
    level8: float = 0.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_parts()
        self._check_anchor()

    def _check_numbers(self) -> None:
        for name in ("density", "p", "tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadInputError(f"{name} must be in (0, 1], got {value:g}")
        for name in ("floor", "level2", "level4", "level8"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(f"{name} must be in [0, 1], got {getattr(self, name):g}")
        if not 0 <= self.rotate < 1:
            raise BadInputError(f"rotate must be in [0, 1), got {self.rotate:g}")
        if self.block % 16 or not 16 <= self.block <= 256:
            raise BadInputError(f"block must be a multiple of 16 from 16 to 256, got {self.block}")
        for name, least in (("choose_every", 0), ("sampled_rows", 1)):
            if getattr(self, name) < least:
                raise BadInputError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def _check_parts(self) -> None:
        ranks = self.estimator.measure is Measure.RANK
        if ranks and self.selector not in (Selector.TOP_K, Selector.THRESHOLD):
            raise BadInputError(
                f"the estimator {type(self.estimator).__name__} only ranks blocks within a head: "
                "choose selector top_k or threshold"
            )
        if self.compensation is Compensation.LEVELS and (
            self.selector is not Selector.TOP_K or self.block != 128
        ):
            raise BadInputError("compensation=levels takes selector=top_k and block=128")
        if isinstance(self.estimator, Observed):
            if self.density is not None:
                raise BadInputError("this preset has no density: change its margin")
            if self.selector is not Selector.THRESHOLD:
                raise BadInputError("what was observed has a threshold: leave selector=threshold")
            if self.compensation is not Compensation.NONE or self.block > 128:
                raise BadInputError(
                    "observing takes blocks of at most 128 tokens and no compensation"
                )
        has_way = {
            Selector.TOP_P: self.p is not None,
            Selector.THRESHOLD: self.has_mask,
            Selector.TOLERANCE: self.tolerance is not None,
        }
        if self.density is None and not has_way.get(self.selector, False):
            raise BadInputError("this preset only ranks blocks: give it a density in (0, 1]")
        if isinstance(self.estimator, Radial) and not isinstance(self.order, Raster):
            raise BadInputError("the radial mask is made for frames in raster order: order=raster")
        if self.selector is Selector.TOLERANCE and self.compensation not in (
            Compensation.NONE,
            Compensation.CENTROID,
        ):
            raise BadInputError("tolerance measures compensation none or centroid, no other")
        if self.alternatives and not all(each.order.static for each in self.candidates):
            raise BadInputError("heads choose among static orders: a semantic one cannot compete")
        if not self.order.static and self._needs_equal_blocks():
            raise BadInputError(
                "a semantic order makes clusters, not equal blocks: use estimator pooled, "
                "value_aware or routing, anchor=none and compensation none or centroid"
            )

    def _check_anchor(self) -> None:
        spread = [each.order for each in self.candidates if _spreads_frames(each.order)]
        if self.anchor is not Anchor.NONE and spread:
            raise BadInputError(
                f"anchor={self.anchor} keeps the blocks of the first frame, of which the order "
                f"{spread[0]} puts a token into nearly every block: leave anchor=none, or take "
                "an order that goes frame by frame"
            )

    def _needs_equal_blocks(self) -> bool:
        name = type(self.estimator).__name__
        return (
            name not in ("Pooled", "SubBlock", "ValueAware", "Routing")
            or self.anchor is not Anchor.NONE
            or self.compensation not in (Compensation.NONE, Compensation.CENTROID)
            or self.selector is Selector.THRESHOLD
        )

    @property
    def candidates(self) -> tuple[Alternative, ...]:
        """The order and estimator of the policy, and its alternatives."""
        return (Alternative(order=self.order, estimator=self.estimator), *self.alternatives)

    @property
    def has_mask(self) -> bool:
        """Whether the estimator has a mask of its own."""
        return self.estimator.has_mask

    @property
    def static(self) -> bool:
        """Whether plans depend on nothing but the geometry and the layer."""
        return not self.estimator.needs_data and not self.alternatives and not self.rotate

    @property
    def can_reuse_plans(self) -> bool:
        """Whether a plan serves another call: levels and observations are of their own."""
        levels = self.compensation is Compensation.LEVELS
        return not levels and not isinstance(self.estimator, Observed)

    @property
    def levels(self) -> dict[int, float]:
        """Share of the key blocks by the tokens of a mean, for compensation ``levels``."""
        shares = {2: self.level2, 4: self.level4, 8: self.level8}
        return {tokens: share for tokens, share in shares.items() if share}

    def always(self, inputs: Inputs) -> Tensor:
        """What is kept whatever it scores, boolean ``(M, N)`` or ``(B|1, H|1, M, N)``."""
        always, only = inputs.blocks.always_kept, inputs.blocks.only
        if self.anchor is not Anchor.NONE:
            first = inputs.blocks.first_frame
            if self.anchor in (Anchor.KEYS, Anchor.BOTH):
                always = always | first[..., None, :]
            if self.anchor in (Anchor.QUERIES, Anchor.BOTH):
                always = always | (first if only is None else first[..., only])[..., None]
        if self.compensation is Compensation.LEVELS:
            always = always.clone()
            always[..., -1] = True  # it may end in a short mean
        if self.rotate:
            period = max(2, round(1 / self.rotate))
            rows, columns = (torch.arange(n, device=always.device) for n in always.shape[-2:])
            rows = rows if only is None else only
            always = always | ((rows[:, None] + columns + inputs.step) % period == 0)
        return always

    def plan(
        self,
        estimate: Estimate,
        inputs: Inputs,
        *,
        density: float | Tensor | None = None,
        p: float | None = None,
    ) -> BlockPlan:
        """Select blocks.

        Args:
            estimate: Of this policy's estimator.
            inputs: What it saw.
            density: Share of the pairs to keep; of each head, ``(B|1, H)``, as a tensor. None
                takes the policy's own, or its p or the estimator's mask.
            p: Share of the mass to keep instead of the policy's own; not used under a density.
        """
        if density is None and p is None:
            density = self.density
        lists = self._select(estimate, inputs, density, self.p if p is None else p)
        return plan_of_lists(lists, inputs.blocks)

    def _select(
        self, estimate: Estimate, inputs: Inputs, density: float | Tensor | None, p: float | None
    ) -> Lists:
        scores, always = estimate.scores, self.always(inputs)
        blocks, number = inputs.blocks, scores.shape[-1]
        least = max(1, round(self.floor * number))
        if isinstance(density, Tensor):
            heads = max(density.shape[1], scores.shape[1])
            scores = scores.expand(-1, heads, -1, -1)
            return self._budget(scores, always, inputs, density, least, Scope.HEAD)
        if self.selector is Selector.TOP_K:
            assert density is not None
            return select_top_k(scores, max(least, round(density * number)), always=always)
        if self.selector in (Selector.BUDGET, Selector.TOLERANCE):
            assert density is not None
            return self._budget(scores, always, inputs, density, least, self.scope)
        if self.selector is Selector.TOP_P:
            return self._top_p(estimate, inputs, always, density, p, least)
        if density is None:
            assert estimate.threshold is not None
            return select_threshold(scores, estimate.threshold, min_count=least, always=always)
        scores = comparable(scores, self.estimator.measure)
        keep = best_of_map(scores, always, blocks.sizes, density)
        return lists_of_mask(keep, least)

    def _top_p(
        self,
        estimate: Estimate,
        inputs: Inputs,
        always: Tensor,
        density: float | None,
        p: float | None,
        least: int,
    ) -> Lists:
        """Blocks up to a share of the mass; under a density, up to the share that meets it.

        Where scores and mass are two things, the keys that the mass pays for are spent by score.
        """
        counted = estimate.log_mass is not None
        source = estimate.log_mass if estimate.log_mass is not None else estimate.scores
        mass = comparable(source, Measure.LOG_MASS if counted else self.estimator.measure)
        if density is not None:
            left = mass_left(mass, self.mass_of)
            lists = _budget(left, always, inputs, density, least, self.scope)
        elif self.mass_of is MassOf.HEAD:
            assert p is not None
            left = mass_left(mass, self.mass_of)
            lists = select_threshold(left, 1.0 - p, min_count=least, always=always)
        else:
            assert p is not None
            lists = select_top_p(mass, p, min_count=least, always=always)
        if not counted:
            return lists
        sizes = inputs.blocks.kv_sizes
        kept = plan_of_lists(lists, inputs.blocks).to_block_mask()
        tokens = (kept * sizes.unsqueeze(-2)).sum(dim=-1)
        return select_row_budget(estimate.scores, sizes, tokens, always=always)

    def _budget(
        self,
        scores: Tensor,
        always: Tensor,
        inputs: Inputs,
        density: float | Tensor,
        least: int,
        scope: Scope,
    ) -> Lists:
        scores = comparable(scores, self.estimator.measure)
        return _budget(scores, always, inputs, density, least, scope)


def _spreads_frames(order: Order) -> bool:
    """Whether the tokens of one frame stand in nearly every block."""
    return isinstance(order, Hilbert) or (isinstance(order, Axes) and order.axes[0] != "f")


def lists_of_mask(keep: Tensor, least: int = 1) -> Lists:
    """The lists of a block mask, boolean ``(B|1, H|1, M, N)``."""
    return select_threshold(keep.float(), 0.5, min_count=least)


def plan_of_lists(lists: Lists, blocks: Blocks) -> BlockPlan:
    """The plan of lists over these blocks."""
    return BlockPlan(
        kv_count=lists[0],
        kv_index=lists[1],
        q_len=blocks.grid.tokens,
        kv_len=blocks.grid.tokens,
        q_block=blocks.block,
        kv_block=blocks.block,
        q_offsets=blocks.q_offsets,
        kv_offsets=blocks.kv_offsets,
    )


def layer_budget(
    scores: Tensor, always: Tensor, inputs: Inputs, density: float | Tensor, least: int = 1
) -> Lists:
    """One budget for all heads of a layer; the lists of those that are here."""
    scores, q_sizes, kv_sizes, always = of_the_layer(scores, always, inputs)
    lists = select_budget(scores, q_sizes, kv_sizes, density, min_count=least, always=always)
    return own_of(inputs.share, lists[0]), own_of(inputs.share, lists[1])


def of_the_layer(
    scores: Tensor, always: Tensor, inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, sizes of query and of key blocks, and what is always kept, of all heads."""
    share, q_sizes, kv_sizes = inputs.share, inputs.blocks.q_sizes, inputs.blocks.kv_sizes
    if q_sizes.ndim > 1:
        q_sizes, kv_sizes = all_of(share, q_sizes), all_of(share, kv_sizes)
    always = always if always.ndim == 2 else all_of(share, always)
    return all_of(share, scores), q_sizes, kv_sizes, always


def _budget(
    scores: Tensor,
    always: Tensor,
    inputs: Inputs,
    density: float | Tensor,
    least: int,
    scope: Scope,
) -> Lists:
    """A budget for each head or for all of a layer."""
    if scope is Scope.LAYER:
        return layer_budget(scores, always, inputs, density, least)
    sizes = inputs.blocks.q_sizes, inputs.blocks.kv_sizes
    batch, heads = scores.shape[:2]

    def fold(x: Tensor) -> Tensor:  # heads become entries of the batch
        return x.expand(batch, heads, *x.shape[2:]).flatten(0, 1)[:, None]

    if isinstance(density, Tensor):
        density = density.expand(batch, heads).flatten()
    q_sizes, kv_sizes = (size if size.ndim == 1 else fold(size) for size in sizes)
    always = always if always.ndim == 2 else fold(always)
    count, index = select_budget(
        fold(scores), q_sizes, kv_sizes, density, min_count=least, always=always
    )
    return count.view(batch, heads, -1), index.view(batch, heads, *index.shape[2:])
