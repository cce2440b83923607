"""Random blocks: the control that every method must beat at the same density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse.head_sharing import own_of
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(Estimator):
    """Scores drawn once for each layer and head, the same at every step.

    Attributes:
        seed: Of the draw.
    """

    seed: int = 0

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks at random, ``(1, heads, M, N)``."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + inputs.layer)
        number = inputs.blocks.number
        scores = torch.rand(1, inputs.all_heads, number, number, generator=generator)
        return Estimate(scores=own_of(inputs.share, scores).to(inputs.blocks.device))
