"""The nearest tokens of the sequence and its first ones: the A-shape of StreamingLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse.errors import BadInputError
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Estimator):
    """A window of tokens around each query, and the first tokens of all: arXiv 2309.17453.

    There the window lies before the query; here half of it is on either side. Both are rounded to
    blocks: a block is in the window if it starts within half a window of the query's own, and among
    the first tokens if it holds one of them. A density makes the window wider or narrower.

    Attributes:
        window: Tokens of the window, at least 1.
        sinks: First tokens, which every query sees; 0 for none.
    """

    window: int = 2048
    sinks: int = 64

    needs_data: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        if self.window < 1:
            raise BadInputError(f"window must be at least 1 token, got {self.window}")
        if self.sinks < 0:
            raise BadInputError(f"sinks must be at least 0 tokens, got {self.sinks}")

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density sets the width of the window."""
        if density is None:
            return {}
        return {"window": "the density sets the width of the window, so give one of the two"}

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the window that would hold them, ``(1, 1, N, N)``."""
        blocks = inputs.blocks
        at = torch.arange(blocks.number, device=blocks.device)
        rows = at if blocks.only is None else blocks.only
        away = (rows[:, None] - at).abs() * (2 * blocks.block / self.window)
        first = at * blocks.block < self.sinks
        scores = -away.masked_fill(first, 0.0)[None, None]
        return Estimate(scores=scores, threshold=-1.0, scales=True)
