"""The purse: a mean density, spent over steps, layers and heads where it buys the most.

Where a preset goes by a tolerance of error, one tolerance serves the whole run, so every layer gets
the density at which it errs as much as the others. The purse finds the tolerance whose mean
density is the one that was asked for: it counts what was spent, so it knows what the rest of the
run can afford. What calls want at the tolerance is divided by how far they have wanted too much of
late, and the tolerance moves until that is one. All on the device: nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidsparse.dial import LEAST
from vidsparse.progress import Progress

CALLS = 8  # of a step, before any are counted
GAIN = 2.0  # of the corrections of a step's calls together
FARTHEST = 2.0  # from what is affordable, that a call's density may lie


class Purse:
    """What a run may spend.

    Args:
        asked: Mean density of the run, in (0, 1].
        tolerance: Relative error of a layer's output to begin with.
    """

    def __init__(self, asked: float, tolerance: float) -> None:
        self._asked = asked
        self.tolerance: Tensor = torch.tensor(tolerance)
        self._run: tuple[float, ...] = ()
        self._at = -1
        self._before: Tensor | float = 0.0  # sum of the mean densities of the steps that are over
        self._spent: Tensor | float = 0.0
        self._calls, self._calls_before = 0, 0
        self._full: Tensor = torch.tensor(1.0)
        self._excess: Tensor | None = None

    def enter(self, progress: Progress, ways: Sequence[float]) -> None:
        """A call of this step begins.

        Args:
            progress: Of the step.
            ways: How far each step of the run is from dense, mean over the layers.
        """
        if (progress.bounds, progress.at) == (self._run, self._at):
            return
        if self._calls:
            self._before = self._before + self._spent / self._calls * (progress.at - self._at)
        self._run, self._at = progress.bounds, progress.at
        self._calls_before, self._calls, self._spent = self._calls, 0, 0.0
        rest = ways[progress.at :]
        left = self._asked * len(ways) - self._before - sum(1 - way for way in rest)
        self._full = torch.as_tensor(left / max(sum(rest), 1e-6)).clamp(LEAST, 1.0)

    def affordable(self, way: float) -> Tensor:
        """The density that calls of this step may have on average, ``()``.

        Args:
            way: How far the schedule has come from dense, in (0, 1].
        """
        return 1 - way * (1 - self._full)

    def bound(self, density: Tensor, way: float, besides: float = 0.0) -> Tensor:
        """What a plan may have of the density that it wants at the tolerance, which moves.

        Args:
            density: At which it errs as much as the tolerance, any shape.
            way: How far the schedule has come from dense, in (0, 1].
            besides: What is computed for what is skipped, as a share of its pairs.
        """
        mean = ((self.affordable(way).to(density.device) - besides) / (1 - besides)).clamp(LEAST)
        rate = min(0.5, GAIN / (self._calls_before or CALLS))
        excess = density.mean() / mean
        self._excess = excess if self._excess is None else self._excess.lerp(excess, rate)
        moved = self.tolerance.to(density.device) * self._excess**rate
        self.tolerance = moved.clamp(1e-5, 1.0)
        most = (mean * FARTHEST).clamp(max=1.0)
        return (density / self._excess).clamp(mean / FARTHEST, most)

    def pay(self, density: Tensor) -> None:
        """A call of this step has computed so much, any shape."""
        self._spent, self._calls = self._spent + density.float().mean(), self._calls + 1
