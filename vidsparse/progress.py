"""Progress: the share of a run that is done, of the whole way from pure noise to the video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

UNKNOWN = 50  # steps of a run of which nobody says anything


@dataclass(frozen=True, slots=True)
class Progress:
    """Where in its run a denoising step stands.

    Shares are of steps, not of noise: half of the steps is half of the time, however a scheduler
    shifts its noise levels.

    Attributes:
        bounds: The share that is done before each step, and after the last; ascending, in [0, 1].
            The first is above 0 where a run starts on the way, from a video or at a second stage.
        at: Which of the run's steps it is, from 0.
    """

    bounds: tuple[float, ...]
    at: int

    @classmethod
    def first(cls, steps: int, start: float = 0.0) -> Progress:
        """The first of a run's steps.

        Args:
            steps: How many the run takes.
            start: The share of the whole way that is behind it.

        Example:
            >>> Progress.first(4).bounds
            (0.0, 0.25, 0.5, 0.75, 1.0)
        """
        return cls(tuple(start + (1 - start) * step / steps for step in range(steps + 1)), 0)

    @classmethod
    def alone(cls, done: float) -> Progress:
        """Of a call of which nobody knows the steps before and after it."""
        return cls((done, done), 0)

    @property
    def before(self) -> float:
        """The share that is done when the step begins."""
        return self.bounds[self.at]

    @property
    def after(self) -> float:
        """The share that is done when it ends."""
        return self.bounds[self.at + 1]

    @property
    def next(self) -> Progress | None:
        """Of the step after this one; None at the last."""
        return replace(self, at=self.at + 1) if self.at + 2 < len(self.bounds) else None

    @property
    def run(self) -> Progress:
        """The run that it belongs to; one of 50 steps stands in for a run that nobody knows."""
        return Progress.first(UNKNOWN) if self.is_alone else self

    @property
    def is_alone(self) -> bool:
        """Whether nobody knows the steps before and after it."""
        return self.after == self.before

    def steps(self) -> Iterator[Progress]:
        """All steps of the run."""
        return (replace(self, at=at) for at in range(len(self.bounds) - 1))
