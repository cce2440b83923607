"""An attention call that is ordered and planned, and the kernels that run it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.observe import Observed
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.estimator import Inputs


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
    """

    inputs: Inputs
    plan: BlockPlan
    q_order: Tensor | None = None
    kv_order: Tensor | None = None
    levels: tuple[Level, ...] = ()

    def head_density(self) -> Tensor:
        """Density of each head, ``(B|1, H|1)``; a pair with a mean counts as one pair."""
        density = self.plan.head_density()
        for tokens, coarse in self.levels:
            density = density + coarse.head_density() / tokens
        return density


@dataclass(frozen=True, eq=False, kw_only=True)
class Kernel:
    """The one door to attention, with what stays the same in a call.

    Attributes:
        scale: Score scale.
        engine: "auto", or a name in ``kernels.engines.table.ENGINES``.
        ran: Counts the engines that ran, by name.
    """

    scale: float
    engine: str
    ran: Counter[str]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Tensor:
        """Attend; tensors ``(batch, heads, seq, head_dim)``."""
        return attention(q, k, v, plan, scale=self.scale, engine=self.engine, ran=self.ran)

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> tuple[Tensor, Tensor]:
        """Attend, and return the log-sum-exp of each row, ``(batch, heads, seq)``, besides."""
        return attention(
            q, k, v, plan, scale=self.scale, engine=self.engine, ran=self.ran, return_lse=True
        )

    def observed(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Observed:
        """Attend, and report what was seen of each block."""
        return attention(
            q, k, v, plan, scale=self.scale, engine=self.engine, ran=self.ran, observe=True
        )
