"""A density for each layer or head, from the measured error of its attention at two densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, islice

from vidsparse.budgets import Budgets
from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.preset import Preset
from vidsparse.progress import Progress

LEAST, HALVINGS = 0.02, 60
FLAT = 1e-3  # a part whose error falls no faster with its density gains nothing by more
Errors = list[list[float]]  # of each layer: one for all of it, or one for each head


@dataclass(frozen=True, slots=True)
class ErrorCurves:
    """How the error of each part falls with its density: ``height * exp(-rate * density)``.

    A part is a layer, or a head of a layer.

    Attributes:
        heights: Of each part, layer by layer.
        rates: Of each part.
        parts: How many each layer has.
    """

    heights: tuple[float, ...]
    rates: tuple[float, ...]
    parts: tuple[int, ...]

    @classmethod
    def through(cls, densities: tuple[float, float], errors: tuple[Errors, Errors]) -> ErrorCurves:
        """The curves through errors at two densities.

        Args:
            densities: Two, the lower first.
            errors: Of each part of each layer, at each of them.
        """
        low, high = densities
        rates, heights = [], []
        for at_low, at_high in zip(*(_flat(each) for each in errors), strict=True):
            fall = math.log(max(at_low, 1e-9) / max(at_high, 1e-9)) / (high - low)
            rates.append(max(fall, FLAT))
            heights.append(max(at_high, 1e-9) * math.exp(rates[-1] * high))
        return cls(tuple(heights), tuple(rates), tuple(len(layer) for layer in errors[0]))

    def shares(self, density: float) -> list[float]:
        """Densities of this mean at which the sum of errors is the least.

        There every part would gain as much by a little more, but for those at a limit.
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
        """A preset whose layers or heads share its density so; None where it takes no budgets.

        Args:
            base: With a mean density.
            steps: Of a run.
            path: What the budgets say that they are from.
        """
        layers = len(self.parts)
        try:
            density = full_density(base, Progress.first(steps), layers=layers)
            shares = iter(round(each, 4) for each in self.shares(density))
            each = {layer: list(islice(shares, n)) for layer, n in enumerate(self.parts)}
            budgets = Budgets.made_of(path, each)
            return base.override({"density": round(density, 6), "budgets": budgets})
        except BadInputError:
            return None


def equally(preset: Preset, density: float, heads: Errors, path: str) -> Preset:
    """A preset every head of which has the same density, whatever the others of its layer need.

    Args:
        preset: That takes budgets.
        density: Of every head.
        heads: As many for each layer as it has heads.
        path: What the budgets say that they are from.

    Raises:
        BadInputError: When it takes none.
    """
    each = {layer: [density] * len(found) for layer, found in enumerate(heads)}
    return preset.override({"density": density, "budgets": Budgets.made_of(path, each)})


def _flat(errors: Errors) -> list[float]:
    return list(chain.from_iterable(errors))
