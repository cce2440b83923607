"""Correction: what a few exact rows say of the output, whatever method made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, dense_plan
from vidsparse.kernels.planning.runs import correct_runs
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.part import Part
from vidsparse.policies.work import Kernel, Work

Run = Callable[[], tuple[Tensor, float | Tensor]]
"""Runs a plan with its compensation, or while observing: output, and density beside the plan."""


class Correction(Part):
    """What is done to the output of a plan, once its compensation has been at it.

    The defaults are those of one that does nothing.

    Attributes:
        corrects: Whether it changes an output.
    """

    __slots__ = ()

    corrects: ClassVar[bool] = True

    def attend(self, run: Run, work: Work, kernel: Kernel) -> tuple[Tensor, float | Tensor]:
        """Run a plan and correct its output.

        Args:
            run: The plan with its compensation.
            work: The same call, ordered and planned.
            kernel: Runs block plans.

        Returns:
            The output, ``(batch, heads, seq, head_dim)`` in the plan's order, and the density of
            what was computed beside the plan and its levels.
        """
        return run()

    def pairs(self, ways: Sequence[float]) -> list[float]:
        """What it computes at each step, as a share of all pairs.

        Args:
            ways: How far from dense each step is, in [0, 1].
        """
        return [0.0] * len(ways)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCorrection(Correction):
    """The output stays as the plan and the compensation made it."""

    corrects: ClassVar[bool] = False


class Row(StrEnum):
    """Which row of a run of neighbours is exact.

    Attributes:
        FIRST: The first, as published for models that see only what came before.
        MIDDLE: The middle one, which is nearest to all others.
    """

    FIRST = "first"
    MIDDLE = "middle"


class Gain(StrEnum):
    """How much of what an exact row gains its neighbours gain.

    Attributes:
        WHOLE: All of it, as published: more error than before where neighbours err each its own
            way, as under a selector that keeps what matters to each.
        AGREED: As much as exact rows tell of one another: the root of how far what two neighbouring
            ones gain is alike, in each head. Ours.
    """

    WHOLE = "whole"
    AGREED = "agreed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(Correction):
    """One row in so many is exact, and what it gains is added to its neighbours: Delta Attention.

    arXiv 2505.11254: with the sparse output O, its rows cut into runs of ``exact_every``, and the
    dense output D of one row g of each run,

        O_i <- O_i + D_g - O_g    for every row i of the run

    Neighbours are those of the plan's order, so that rows of a run share the blocks that they lack.
    Text rows are exact anyway and are left alone; a query that is no number corrects nobody.

    Attributes:
        exact_every: Rows in a run, at least 1: a share of one over it is added to the density.
        exact_at: Which row of a run is exact.
        exact_gain: How much of what it gains is added to its neighbours.
    """

    exact_every: int = 64
    exact_at: Row = Row.FIRST
    exact_gain: Gain = Gain.WHOLE

    def __post_init__(self) -> None:
        check_sizes(self, "exact_every")

    def attend(self, run: Run, work: Work, kernel: Kernel) -> tuple[Tensor, float | Tensor]:
        """Attend densely from one row of each run, and add the difference to the run."""
        out, besides = run()
        q, k, v = work.inputs.qkv
        grid, rows = work.inputs.blocks.grid, self._rows(work)
        exact = kernel(q.index_select(2, rows), k, v, self._plan(work, rows))
        if torch.is_grad_enabled() and out.requires_grad:
            out = out.clone()
        correct_runs(
            out, exact, rows, self.exact_every,
            start=grid.prefix, length=grid.video_tokens, agreed=self.exact_gain is Gain.AGREED,
        )  # fmt: skip
        return out, besides + len(rows) / grid.tokens

    def _rows(self, work: Work) -> Tensor:
        """Where the exact rows stand in the plan's order, int64 ``(runs,)``."""
        kept = work.inputs.blocks.kept
        return kept.get(("exact rows", self.exact_every, self.exact_at), lambda: self._made(work))

    def _made(self, work: Work) -> Tensor:
        grid, device = work.inputs.blocks.grid, work.inputs.blocks.device
        end = grid.prefix + grid.video_tokens
        start = torch.arange(grid.prefix, end, self.exact_every, device=device)
        if self.exact_at is Row.FIRST:
            return start
        return start + (end - start).clamp(max=self.exact_every) // 2

    def _plan(self, work: Work, rows: Tensor) -> BlockPlan:
        plan, number = work.plan, len(rows)
        name = ("plan of rows", number, plan.q_block, plan.kv_len, plan.kv_block)
        return work.inputs.blocks.kept.get(name, lambda: plan_of_rows(plan, number))

    def pairs(self, ways: Sequence[float]) -> list[float]:
        """One row of each run, at every sparse step."""
        return [1 / self.exact_every if way > 0 else 0.0 for way in ways]


def plan_of_rows(plan: BlockPlan, rows: int) -> BlockPlan:
    """The plan by which so many queries see all keys of another plan, in blocks of equal size."""
    like = dataclasses.replace(plan, q_len=rows, q_offsets=None, kv_offsets=None)
    return dense_plan(like)
