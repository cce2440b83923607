"""A policy: an order, an estimator, a selector and a compensation, which make block plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.partial import with_whole
from vidsparse.policies.block_size import usual_block
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.choice import Alternative, Alternatives
from vidsparse.policies.compensation import Compensation, NoCompensation
from vidsparse.policies.correction import Correction, NoCorrection, Run
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.few_heads import by_few_heads, for_all_heads
from vidsparse.policies.fit import check_fit, check_numbers
from vidsparse.policies.judge import unlike_pairs, without_unlike
from vidsparse.policies.lists import lists_of_mask, plan_of_lists
from vidsparse.policies.orders import Order, Raster
from vidsparse.policies.part import Part
from vidsparse.policies.scope import Scope, spend
from vidsparse.policies.selectors import Selection, Selector, TopK, comparable
from vidsparse.policies.token_masks import is_exact
from vidsparse.policies.work import Kernel, Work


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What to compute at full sparsity.

    Attributes:
        order: Where tokens are put before blocks are cut.
        estimator: Scores the blocks.
        selector: How blocks are kept.
        compensation: What is done for the blocks that are skipped.
        correction: What a few exact rows then say of the output.
        scoring_heads: So many mean heads, each of a group of neighbours, score blocks for all;
            at least 1. None lets every head score for itself.
        min_similarity: Blocks whose tokens are no more alike, by their mean cosine in [-1, 1], are
            not judged by their mean: of such keys every row reads the block, and such queries read
            all keys. Under a density they come beside it. None judges every block.
        alternatives: Other orders and estimators; each head takes what errs least on sampled rows.
        density: Share of query-key pairs that are computed once the schedule has left the dense
            steps, in (0, 1]. None leaves it to the mean density, to the selector, or to the
            estimator's own mask.
        mean_density: The same of a whole run, dense steps and layers included, in (0, 1]; the
            density follows from it.
        floor: Share of the key blocks that every row keeps at least, in [0, 1].
        anchor: Which pairs with the first latent frame are always computed.
        rotate: Share of the key blocks that every row keeps besides, others at every step, in
            [0, 1): against flicker, and the way back for blocks that were skipped.
        block: Tokens in a block of queries and of keys: a multiple of 16, from 16 to 256. None
            takes what is fast on the device.
        key_block: Tokens in a block of keys, likewise; None takes ``block``. Smaller ones cost no
            attention, only a larger map of blocks.
    """

    order: Order = Raster()  # noqa: RUF009 it is frozen
    estimator: Estimator
    selector: Selector = TopK()  # noqa: RUF009
    compensation: Compensation = NoCompensation()  # noqa: RUF009
    correction: Correction = NoCorrection()  # noqa: RUF009
    scoring_heads: int | None = None
    min_similarity: float | None = None
    alternatives: Alternatives | None = None
    density: float | None = None
    mean_density: float | None = None
    floor: float = 0.0
    anchor: Anchor = Anchor.NONE
    rotate: float = 0.0
    block: int | None = None
    key_block: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        check_fit(self)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The order, the estimator, the selector, the compensation and the correction."""
        return self.order, self.estimator, self.selector, self.compensation, self.correction

    @property
    def any_density(self) -> float | None:
        """Whichever of the two densities is given."""
        return self.mean_density if self.density is None else self.density

    def block_on(self, device: str, tokens: int, head_dim: int) -> int:
        """Tokens in a block, on a type of device."""
        return self.block or usual_block(device, tokens, head_dim)

    def key_means(self, grid: TokenGrid, block: int) -> float:
        """Blocks of keys over keys, with blocks of so many tokens."""
        return self.order.block_counts(grid, block, self.key_block)[1] / grid.tokens

    def besides(self, grid: TokenGrid) -> float:
        """Share of all pairs that is kept beside the density; of the candidate with the most."""
        return max(each.estimator.besides(grid) for each in self.candidates)

    @property
    def spreading_order(self) -> Order | None:
        """An order that puts a token of the first frame into nearly every block, if any."""
        return next((each.order for each in self.candidates if each.order.spreads_frames), None)

    @property
    def branches_share(self) -> bool:
        """Whether guidance branches can share an order, a choice or a plan of their step."""
        chosen = self.alternatives is not None or self.order.learned
        return chosen or (self.can_reuse_plans and not self.static)

    @property
    def in_place_of_density(self) -> str | None:
        """The parameter that says how much is kept where no density may."""
        return next((p.in_place_of_density for p in self.parts if p.in_place_of_density), None)

    @property
    def candidates(self) -> tuple[Alternative, ...]:
        """The order and estimator of the policy, and its alternatives."""
        others = () if self.alternatives is None else self.alternatives.candidates
        return (Alternative(order=self.order, estimator=self.estimator), *others)

    @property
    def static(self) -> bool:
        """Whether plans depend on nothing but the geometry and the layer."""
        return not (self.estimator.needs_data or self.alternatives is not None or self.rotate)

    @property
    def repeats(self) -> bool:
        """Whether a layer's plan is the same at every step of full sparsity."""
        if self.rotate or any(each.estimator.needs_data for each in self.candidates):
            return False
        others = self.alternatives
        return others is None or (not others.choose_every and others.choices is None)

    @property
    def can_reuse_plans(self) -> bool:
        """Whether a plan serves another call: levels and observations are of their own."""
        is_whole = self.compensation.reuses_plans and self.selector.reuses_plans
        return is_whole and not self.estimator.observes

    def own_kept(self, blocks: Blocks) -> Tensor:
        """Text, and the diagonal where the selector keeps it, boolean ``(M, N)``."""
        return blocks.always_kept if self.selector.keeps_diagonal else blocks.text_kept

    def always(self, inputs: Inputs, *, own: bool = True, judges: bool = True) -> Tensor:
        """What is kept whatever it scores, boolean ``(M, N)`` or ``(B|1, H|1, M, N)``.

        Args:
            inputs: Of the call.
            own: With text and the diagonal, which a rule that is exact to the token keeps itself.
            judges: With the blocks of unlike tokens.
        """
        blocks = inputs.blocks
        only = blocks.only
        always = self.own_kept(blocks)
        always = always if own else torch.zeros_like(always)
        if self.anchor in (Anchor.KEYS, Anchor.BOTH):
            always = always | blocks.first_frame(blocks.kv_block)[..., None, :]
        if self.anchor in (Anchor.QUERIES, Anchor.BOTH):
            first = blocks.first_frame(blocks.block)
            always = always | (first if only is None else first[..., only])[..., None]
        if self.min_similarity is not None and judges:
            always = always | unlike_pairs(inputs, self.min_similarity)
        always = self.compensation.always(always)
        if self.rotate:
            period = max(2, round(1 / self.rotate))
            rows, columns = (torch.arange(n, device=always.device) for n in always.shape[-2:])
            rows = rows if only is None else only
            always = always | ((rows[:, None] + columns + inputs.step) % period == 0)
        return always

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks, by every head or by a few for all."""
        if self.scoring_heads is None:
            return self.estimator.estimate(inputs)
        few = by_few_heads(inputs, self.scoring_heads)
        return for_all_heads(self.estimator.estimate(few), inputs.heads)

    def plan(
        self,
        estimate: Estimate,
        inputs: Inputs,
        *,
        density: float | Tensor | None = None,
        way: float = 1.0,
        measure: Measure | None = None,
    ) -> BlockPlan:
        """Select blocks.

        Args:
            estimate: Of this policy's estimator.
            inputs: What it saw.
            density: Share of the pairs to keep; of each head, ``(B|1, H)``, as a tensor. None
                takes the policy's own, or what its selector or the estimator's mask keeps.
            way: How far the schedule has come from dense, in (0, 1].
            measure: What the scores mean, where they are of an alternative's estimator.
        """
        density = self.density if density is None else density
        measure = self.estimator.measure if measure is None else measure
        estimate = self._judged(estimate, inputs, measure, density)
        exact = estimate.exact if is_exact(self) else None
        if exact is not None and density is None:
            return with_whole(exact, self.always(inputs, own=False))
        always = self.always(inputs, judges=density is None)
        number = estimate.scores.shape[-1]
        least = max(1, round(self.floor * number))
        if isinstance(density, Tensor):
            heads = max(density.shape[1], estimate.scores.shape[1])
            scores = comparable(estimate.scores.expand(-1, heads, -1, -1), measure)
            lists = spend(scores, always, inputs, density, least, Scope.HEAD)
        else:
            lists = self.selector.select(
                Selection(
                    estimate=estimate, measure=measure, always=always, inputs=inputs,
                    least=least, density=density, way=way,
                )
            )  # fmt: skip
        plan = plan_of_lists(lists, inputs.blocks)
        if exact is not None:  # on the way from dense the blocks of a density are whole
            return with_whole(exact, plan.to_block_mask())
        if estimate.besides is None:
            return plan
        keep = plan.to_block_mask() | estimate.besides
        return plan_of_lists(lists_of_mask(keep), inputs.blocks)

    def _judged(
        self, estimate: Estimate, inputs: Inputs, measure: Measure, density: float | Tensor | None
    ) -> Estimate:
        """An estimate without unlike keys; under a density unlike blocks come beside it.

        Paid from the density they would leave nothing to the others, where they are many.
        """
        if self.min_similarity is None:
            return estimate
        if density is None:
            return without_unlike(estimate, inputs, self.min_similarity, measure)
        beside = unlike_pairs(inputs, self.min_similarity)
        beside = beside if estimate.besides is None else beside | estimate.besides
        return dataclasses.replace(estimate, besides=beside)

    def attending(
        self, work: Work, kernel: Kernel, *, exact: Kernel, way: float, replan: int
    ) -> Run:
        """What runs a plan, finishes and corrects its output; see ``Compensation.attend``.

        An estimator that observes runs it in the place of the compensation, as does a selector of
        tokens. ``exact`` runs what corrects it.
        """
        planned = self._run(work, kernel, way, replan)
        if work.inputs.copies is None and not self.correction.corrects:
            return planned

        def run() -> tuple[Tensor, float | Tensor]:
            out, besides = planned()
            copies = work.inputs.copies
            if copies is not None:
                taken = out.gather(2, copies.clamp(min=0)[..., None].expand(out.shape))
                out = taken.masked_fill((copies < 0)[..., None], math.nan)
            return out, besides

        return partial(self.correction.attend, run, work, exact)

    def _run(self, work: Work, kernel: Kernel, way: float, replan: int) -> Run:
        """What runs the plan, before it is corrected."""
        if self.selector.per_token:
            return partial(self.selector.attend, work, kernel, way=way)
        part = self.estimator if self.estimator.observes else self.compensation
        return partial(part.attend, work, kernel, way=way, replan=replan)

    def pairs(
        self, ways: Sequence[float], densities: Sequence[float], *, replan: int, means: float
    ) -> list[float]:
        """What is computed at each step beside the plan; see ``Compensation.pairs``."""
        besides = self.compensation.pairs(ways, densities, replan=replan, means=means)
        return [sum(both) for both in zip(besides, self.correction.pairs(ways), strict=True)]
