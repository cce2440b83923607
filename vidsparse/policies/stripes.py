"""Columns that all queries look at: the vertical-stripe pattern of Sparse-vDiT (2506.03065)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.pooled import pooled_mass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripes(Estimator):
    """Key blocks by the mean attention of all query blocks, the same in every row."""

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the mean of its column, ``(batch, heads, M, N)``."""
        mass = pooled_mass(inputs).softmax(dim=-1)
        return Estimate(scores=mass.mean(dim=-2, keepdim=True).expand_as(mass))
