"""A density for each layer, from the measured error of its attention at two densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vidsparse.budgets import Budgets
from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.preset import Preset
from vidsparse.progress import Progress

LEAST, HALVINGS = 0.02, 60
FLAT = 1e-3  # a layer whose error falls no faster with its density gains nothing by more


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """How the error of each layer falls with its density: ``height * exp(-rate * density)``.

    Attributes:
        heights: Of each layer.
        rates: Of each layer.
    """

    heights: tuple[float, ...]
    rates: tuple[float, ...]

    @classmethod
    def through(
        cls, densities: tuple[float, float], errors: tuple[Sequence[float], Sequence[float]]
    ) -> LayerErrors:
        """The curves through errors at two densities.

        Args:
            densities: Two, the lower first.
            errors: Of each layer, at each of them.
        """
        low, high = densities
        rates, heights = [], []
        for at_low, at_high in zip(*errors, strict=True):
            fall = math.log(max(at_low, 1e-9) / max(at_high, 1e-9)) / (high - low)
            rates.append(max(fall, FLAT))
            heights.append(max(at_high, 1e-9) * math.exp(rates[-1] * high))
        return cls(tuple(heights), tuple(rates))

    def shares(self, density: float) -> list[float]:
        """Densities of this mean at which the sum of errors is the least.

        There every layer would gain as much by a little more, but for those at a limit.
        """
        low, high = -60.0, 60.0  # logarithm of that gain
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            mean = math.fsum(self._at(middle)) / len(self.rates)
            low, high = (middle, high) if mean > density else (low, middle)
        return self._at(high)

    def _at(self, gain: float) -> list[float]:
        pairs = zip(self.heights, self.rates, strict=True)
        wanted = ((math.log(height * rate) - gain) / rate for height, rate in pairs)
        return [min(1.0, max(LEAST, each)) for each in wanted]

    def preset(self, base: Preset, steps: int, path: str) -> Preset | None:
        """A preset whose layers share its density so; None where it takes no budgets.

        Args:
            base: With a mean density.
            steps: Of a run.
            path: What the budgets say that they are from.
        """
        layers = len(self.rates)
        try:
            density = full_density(base, Progress.first(steps), layers=layers)
            shares = [round(each, 4) for each in self.shares(density)]
            budgets = Budgets.made_of(path, dict(enumerate(shares)))
            return base.override({"density": round(density, 6), "budgets": budgets})
        except BadInputError:
            return None
