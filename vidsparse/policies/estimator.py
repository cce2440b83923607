"""What an estimator is: how much each block of keys matters to each block of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from vidsparse.policies.blocks import Blocks


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """What an estimator may look at.

    Attributes:
        blocks: The sequence, cut into blocks.
        q: ``(batch, heads, seq, head_dim)``; None when only the geometry is asked for.
        k: ``(batch, heads, seq, head_dim)``, likewise.
        scale: Score scale of the attention call.
        heads: Number of heads.
        layer: Index of the layer, from 0.
    """

    blocks: Blocks
    q: Tensor | None = None
    k: Tensor | None = None
    scale: float = 1.0
    heads: int = 1
    layer: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate:
    """How much each block matters.

    Attributes:
        scores: ``(B|1, H|1, M, N)``; of two blocks, the one with the higher score is kept.
        threshold: The estimator's own cut-off: blocks that score at least this belong to its
            mask. None when it only ranks blocks, and a density must say how many are kept.
    """

    scores: Tensor
    threshold: float | None = None


class Estimator(Protocol):
    """Scores blocks. A frozen dataclass of its parameters; it holds no state."""

    needs_data: ClassVar[bool]
    """Whether it looks at q and k; if not, its scores are made once for each geometry."""
    per_layer: ClassVar[bool]
    """Whether its scores differ between layers that see the same q and k."""
    has_mask: ClassVar[bool]
    """Whether its estimate has a threshold, so that it needs no density."""

    def estimate(self, inputs: Inputs) -> Estimate: ...
