"""An attention call that is ordered and planned, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.estimator import Inputs

Kernel = Callable[..., Any]
"""``kernels.attention.attention``, which has been told the scale, the engine and who counts it."""


class Level(NamedTuple):
    """Blocks that attend through means of a few tokens.

    Attributes:
        tokens: In each mean.
        plan: Which blocks, over the sequence of means.
    """

    tokens: int
    plan: BlockPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """An attention call, ready to run.

    Attributes:
        inputs: q, k and v in the order of the plan.
        plan: What to compute, in that order.
        q_order: How to put the output back, int32 ``(B|1, H|1, seq)``; None if nothing moved.
        kv_order: The order of keys and values, likewise.
        levels: Blocks that take part through means of a few tokens.
        silent: Heads whose output is zero for tokens of video, boolean ``(batch, heads)``.
    """

    inputs: Inputs
    plan: BlockPlan
    q_order: Tensor | None = None
    kv_order: Tensor | None = None
    levels: tuple[Level, ...] = ()
    silent: Tensor | None = None

    def silenced(self, out: Tensor) -> Tensor:
        """The output with zeros where heads are silent, ``(batch, heads, seq, head_dim)``.

        Args:
            out: In raster order.
        """
        if self.silent is None:
            return out
        grid = self.inputs.blocks.grid
        at = torch.arange(grid.tokens, device=out.device)
        video = (at >= grid.prefix) & (at < grid.prefix + grid.video_tokens)
        return out.masked_fill((self.silent[..., None] & video)[..., None], 0.0)

    def head_density(self) -> Tensor:
        """Density of each head, ``(B|1, H|1)``; a pair with a mean counts as one pair."""
        blocks = self.inputs.blocks
        density = self.plan.head_density(q_sizes=blocks.q_sizes, kv_sizes=blocks.kv_sizes)
        for tokens, coarse in self.levels:
            density = density + coarse.head_density(q_sizes=blocks.q_sizes) / tokens
        return density
