"""Blocks that score so many standard deviations above the mean of their row: Sol-Attn's rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.select import Lists, select_threshold
from vidsparse.policies.estimator import Measure
from vidsparse.policies.scope import Scope, spend
from vidsparse.policies.selectors import Selection, Selector

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation(Selector):
    """Blocks above ``mean + tau * deviation`` of the scores of their row: arXiv 2607.24027.

    Nothing is sorted. Both are of the scores of keys, without the ln of a block's size; so where
    the scores are those of means (``pooled``), the deviation is the exact one of the paper, not its
    diagonal one. Normal scores keep 16% at ``tau`` 1. Blocks near the diagonal are kept besides.
    On the way to full sparsity it is the ``tau`` that would keep the larger share of normal scores.
    Under a density, each head keeps the blocks that are farthest above the mean of their row.

    Attributes:
        tau: In standard deviations; a density replaces it.
        near: Blocks up to so many places from the query's own are kept too, at least 0.
    """

    tau: float | None = None
    near: int = 1

    takes_clusters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tau is not None and not -5 <= self.tau <= 5:
            raise BadInputError(f"tau must be in [-5, 5], got {self.tau:g}")
        if self.near < 0:
            raise BadInputError(f"near must be at least 0, got {self.near}")

    @property
    def has_amount(self) -> bool:
        """Whether there is a tau."""
        return self.tau is not None

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A tau says how much is kept, or a density."""
        if density is None:
            return {}
        return {"tau": "the density says how much is kept, so give one of the two"}

    def refuses(self, policy: Policy) -> str | None:
        """It needs one of the two."""
        if self.tau is None and policy.any_density is None:
            return "selector=deviation needs tau, in standard deviations, or a density"
        return None

    def select(self, these: Selection) -> Lists:
        """Keep what is far above the mean of its row."""
        scores, always = self._above(these), these.always | self._band(these)
        if these.density is not None:
            return spend(scores, always, these.inputs, these.density, these.least, Scope.HEAD)
        return select_threshold(scores, self._tau(these.way), min_count=these.least, always=always)

    def _above(self, these: Selection) -> Tensor:
        """Standard deviations of each block above the mean of its row."""
        scores = these.estimate.scores.float()
        if these.measure is Measure.LOG_MASS:
            scores = scores - these.inputs.blocks.kv_sizes.log().unsqueeze(-2)
        away = scores - scores.mean(dim=-1, keepdim=True)
        return away * (away.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()

    def _band(self, these: Selection) -> Tensor:
        """Blocks near the diagonal, boolean ``(N, N)``."""
        at = torch.arange(these.inputs.blocks.number, device=these.always.device)
        return (at[:, None] - at).abs() <= self.near

    def _tau(self, way: float) -> float:
        assert self.tau is not None
        if way >= 1:
            return self.tau
        normal = NormalDist()
        return -normal.inv_cdf(min(1 - 1e-12, 1 - way * normal.cdf(self.tau)))
