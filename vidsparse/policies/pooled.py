"""Draft: attention between block means stands for attention between blocks (arXiv 2505.14708)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vidsparse.kernels.pooling import pool_blocks
from vidsparse.policies.estimator import Estimate, Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Low-resolution attention: ``score = scale * mean(q) . mean(k) + ln(size of the block)``.

    Within a row this ranks blocks by the attention mass that the low-resolution map gives them.
    """

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by its low-resolution attention, ``(batch, heads, M, N)``."""
        assert inputs.q is not None
        assert inputs.k is not None
        block = inputs.blocks.block
        query, key = pool_blocks(inputs.q, block), pool_blocks(inputs.k, block)
        return Estimate(scores=query @ key.mT * inputs.scale + inputs.blocks.sizes.log())
