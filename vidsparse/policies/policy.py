"""A policy: an estimator, a selector and a compensation, which together make block plans."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.pooling import pool_blocks
from vidsparse.policies import selectors
from vidsparse.policies.estimator import Estimate, Estimator, Inputs


class Selector(StrEnum):
    """How scores become a plan under a density.

    Attributes:
        TOP_K: The same number of blocks in every row.
        THRESHOLD: The estimator's own mask; under another density, the best blocks of the map.
    """

    TOP_K = "top_k"
    THRESHOLD = "threshold"


class Compensation(StrEnum):
    """What is done for blocks that are skipped.

    Attributes:
        NONE: Nothing; they get no attention.
        CENTROID: They attend through their mean key and value, scored with ``+ ln(size)``.
    """

    NONE = "none"
    CENTROID = "centroid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What to compute at full sparsity.

    Attributes:
        estimator: Scores the blocks.
        selector: How blocks are kept under a density.
        compensation: What is done for the blocks that are skipped.
        density: Share of query-key pairs that are computed once the schedule has left the dense
            steps, in (0, 1]. None leaves it to the estimator's own mask.
        block: Tokens in a block of queries and of keys: a multiple of 16, from 16 to 256.
    """

    estimator: Estimator
    selector: Selector = Selector.TOP_K
    compensation: Compensation = Compensation.NONE
    density: float | None = None
    block: int = 64

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:
            raise BadInputError(f"density must be in (0, 1], got {self.density:g}")
        if self.block % 16 or not 16 <= self.block <= 256:
            raise BadInputError(f"block must be a multiple of 16 from 16 to 256, got {self.block}")
        ranks_only = self.selector is Selector.TOP_K or not self.estimator.has_mask
        if self.density is None and ranks_only:
            raise BadInputError("this preset only ranks blocks: give it a density in (0, 1]")

    def keep(self, estimate: Estimate, inputs: Inputs, density: float | None) -> Tensor:
        """Select blocks, boolean ``(B|1, H|1, M, N)``; density None is the full-sparsity mask."""
        always = inputs.blocks.always_kept
        density = self.density if density is None else density
        if density is None:
            assert estimate.threshold is not None
            return selectors.threshold(estimate.scores, always, estimate.threshold)
        if self.selector is Selector.TOP_K:
            return selectors.top_k(estimate.scores, always, density)
        return selectors.budget(estimate.scores, always, inputs.blocks.sizes, density)

    def plan(self, keep: Tensor, inputs: Inputs) -> BlockPlan:
        """The lists of a block mask."""
        tokens, block = inputs.blocks.grid.tokens, self.block
        return BlockPlan.from_mask(keep, q_len=tokens, kv_len=tokens, q_block=block, kv_block=block)

    def compensate(self, plan: BlockPlan, k: Tensor, v: Tensor, sizes: Tensor) -> BlockPlan:
        """Attach what stands in for skipped blocks.

        Args:
            plan: Of this policy.
            k: ``(batch, heads, seq, head_dim)``.
            v: ``(batch, heads, seq, head_dim)``.
            sizes: Tokens in each block, ``(N,)``.
        """
        if self.compensation is Compensation.NONE:
            return plan
        key, value = (pool_blocks(x, self.block) for x in (k, v))
        return dataclasses.replace(plan, pooled=Pooled(key=key, value=value, size=sizes))
