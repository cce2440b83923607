"""The schedule: how much is computed at each step of a run and in each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.policies.checks import check_sizes
from vidsparse.progress import Progress

LONGEST_RAMP = 0.3
ROUNDING = 1e-9  # 7 / 20 of a run is not after its first 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Dense at the start, then a ramp down to the policy's density, dense again at the end if told.

    All in shares of the run, which its scheduler's list of steps says: runs of 4 and of 50 steps,
    at any shift of the noise, mean the same. On the ramp the density falls in a straight line of
    the progress; a step is taken by its middle.

    Attributes:
        warmup: Share of the run that is dense at its start, in [0, 1]; one step at least, if not 0.
        ramp_until: Share of the run after which all is at full sparsity, in [warmup, 1]. Equal to
            ``warmup``, the ramp is a switch. A ``mean_density`` that is told to a preset brings its
            own, unless this is told too.
        cooldown: Share of the run that is dense at its end, in [0, 1]; one step at least, if not 0.
        dense_layers: The first so many layers are always dense.
        share_layers: So many neighbouring layers use one order and one plan, made by the first of
            them at each step at which it makes one: TidalDecode, arXiv 2410.05076. They are counted
            from the first layer that is not always dense.
        budgets: A JSON file with a density for each layer, or each head of it, at full sparsity.
        replan: A layer's plan is made anew after so many steps; in between it is used again, once
            the ramp has come to its end. Under compensation residual each new plan, from then on,
            costs a dense step.
        share_branches: Guidance branches that run one after the other use one order and one plan,
            made by the first of a step. Guidance multiplies what their errors differ in, and
            errors of the same plan are alike; it also halves the cost of planning. Their texts may
            differ in length: after the video, and where blocks are clusters before it too.
    """

    warmup: float = 0.05
    ramp_until: float = LONGEST_RAMP
    cooldown: float = 0.0
    dense_layers: int = 0
    replan: int = 1
    share_branches: bool = True
    share_layers: int = 1
    budgets: Budgets | None = None

    def __post_init__(self) -> None:
        for name in ("warmup", "ramp_until", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(
                    f"{name} is a share of the run in [0, 1], got {getattr(self, name):g}"
                )
        if self.ramp_until < self.warmup:
            raise BadInputError(
                f"ramp_until ({self.ramp_until:g}) comes before the end of the warm-up "
                f"({self.warmup:g}): give one that is at least warmup"
            )
        if self.dense_layers < 0:
            raise BadInputError(f"dense_layers must be at least 0, got {self.dense_layers}")
        check_sizes(self, "replan", "share_layers")

    def paid_by(self, mean_density: float) -> Schedule:
        """With the ramp that suits a mean density: it and the dense start take half of that.

        No ramp is longer than ``LONGEST_RAMP``, and a switch stays one. Clusters are 2.0 to 2.6 dB
        nearer to dense at a mean density of 0.25 with a ramp until 0.2 than until 0.3, and boxes as
        near (benchmarks/results/ladder_schedules_h200.json, ladder_clusters_ramps_h200.json).

        Args:
            mean_density: Of the whole run, in (0, 1].

        Example:
            >>> [Schedule().paid_by(mean).ramp_until for mean in (0.5, 0.35, 0.25, 0.15)]
            [0.3, 0.3, 0.2, 0.1]
        """
        if self.ramp_until - self.warmup < ROUNDING:
            return self
        until = round(min(LONGEST_RAMP, mean_density - self.warmup), 6)
        return replace(self, ramp_until=max(until, self.warmup))

    @property
    def remembers(self) -> bool:
        """Whether a plan may serve another call: of a branch, a step or a layer."""
        return self.share_branches or self.replan > 1 or self.share_layers > 1

    def first_of_layers(self, layer: int) -> int:
        """The layer whose plan a layer uses, where neighbours share one.

        Args:
            layer: Index of a layer that is not always dense, from 0.

        Example:
            >>> schedule = Schedule(dense_layers=2, share_layers=7)
            >>> [schedule.first_of_layers(layer) for layer in (2, 3, 8, 9, 15, 16)]
            [2, 2, 2, 9, 9, 16]
        """
        return layer - (layer - self.dense_layers) % self.share_layers

    def way(self, progress: Progress, layer: int) -> float:
        """How far a call has come from dense, 0, to full sparsity, 1.

        Args:
            progress: Of its step.
            layer: Index of the layer, from 0.
        """
        before, after = progress.before, progress.after
        if layer < self.dense_layers or before < self.warmup - ROUNDING:
            return 0.0
        if self.cooldown and after > 1 - self.cooldown + ROUNDING:
            return 0.0
        if self.ramp_until - self.warmup < ROUNDING:
            return 1.0
        middle = (before + after) / 2
        way = (middle - self.warmup) / (self.ramp_until - self.warmup)
        return min(1.0, max(0.0, way))

    def ways(self, run: Progress) -> list[float]:
        """That of every step of a run, in the layers that are not always dense."""
        return [self.way(step, self.dense_layers) for step in run.steps()]
