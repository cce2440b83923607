"""The search for the cheapest preset that meets a target, or the best within a time.

It knows presets only by their bases' names and what a trial measures: a trial is made by a function
that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vidsparse.preset import Preset

STEP = 0.025  # of mean density: finer, one prompt differs from another by more
NOISE = 0.02  # of a time: nearer, two are told apart by what they compute
SAVINGS = 4  # steps of density that a better way to share it may save
MOST = 0.95  # mean density: above, nothing is gained


class Measure(StrEnum):
    """What a target is in.

    Attributes:
        PSNR: Against dense, in dB; at least.
        LPIPS: Against dense; at most.
        SECONDS: Of a whole run; at most.
    """

    PSNR = "psnr"
    LPIPS = "lpips"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Trial:
    """A preset on the prompts.

    Attributes:
        preset: It.
        error: Distance to dense: minus PSNR, or LPIPS.
        seconds: Of a whole run, mean over clips.
        gain: Times as fast as dense, mean over clips.
        density: Mean density.
    """

    preset: Preset
    error: float
    seconds: float
    gain: float
    density: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted.

    Attributes:
        measure: In what.
        value: How much of it.
    """

    measure: Measure
    value: float

    @property
    def is_time(self) -> bool:
        """Whether time is given and quality wanted, or the other way round."""
        return self.measure is Measure.SECONDS

    def met(self, trial: Trial) -> bool:
        """Whether a trial is good enough, or fast enough."""
        if self.is_time:
            return trial.seconds <= self.value
        return trial.error <= (-self.value if self.measure is Measure.PSNR else self.value)

    def better(self, trial: Trial, other: Trial | None) -> bool:
        """Whether a trial is to be preferred."""
        if other is None or self.met(trial) != self.met(other):
            return other is None or self.met(trial)
        if self.is_time == self.met(trial):  # both in time, or both not good enough
            return (trial.error, trial.seconds) < (other.error, other.seconds)
        near = abs(trial.seconds - other.seconds) <= NOISE * other.seconds
        if near or trial.preset.name == other.preset.name:  # which computes less is then faster
            return (trial.density, trial.error) < (other.density, other.error)
        return trial.seconds < other.seconds

    def said(self) -> str:
        """For a person."""
        words = {
            Measure.PSNR: f"{self.value:g} dB PSNR against dense",
            Measure.LPIPS: f"LPIPS {self.value:g} against dense",
            Measure.SECONDS: f"{self.value:g} s a run",
        }
        return words[self.measure]


Try = Callable[[Preset], Trial | None]  # None where the preset cannot run


@dataclass(frozen=True, slots=True)
class Base:
    """A preset whose mean density is turned.

    Attributes:
        preset: It.
        least: The least mean density that a run of it can have.
    """

    preset: Preset
    least: float

    def densities(self) -> list[float]:
        """What its mean density may be, ascending."""
        first = math.ceil(round(self.least / STEP, 6))
        return [round(index * STEP, 6) for index in range(first, round(MOST / STEP) + 1)]

    def at(self, density: float) -> Preset:
        """The preset at a mean density."""
        return self.preset.override({"mean_density": density})


def most_trials(bases: Sequence[Base], refinements: int) -> int:
    """How many trials there can be at most."""
    each = [math.ceil(math.log2(len(base.densities()) + 1)) for base in bases]
    return sum(each) + refinements + SAVINGS


def search(bases: Iterable[Base], target: Target, attempt: Try) -> Trial | None:
    """The best trial of all bases, by halving; None without a base.

    A base is given up as soon as nothing that is left of it can be better than the best so far.
    """
    best: Trial | None = None
    for base in bases:
        for trial in _halve(base, target, attempt, best):
            best = trial if target.better(trial, best) else best
    return best


def _halve(base: Base, target: Target, attempt: Try, best: Trial | None) -> Iterable[Trial]:
    """Trials on the way to the least density that is good enough, or the most that is in time."""
    densities = base.densities()
    low, high = 0, len(densities)
    while low < high:
        middle = (low + high) // 2
        if best is not None and low == 0 and high == len(densities):
            middle = _nearest(densities, best.density)  # where it shows at once which is better
        trial = attempt(base.at(densities[middle]))
        if trial is None:
            low = middle + 1
            continue
        yield trial
        if target.met(trial) == target.is_time:  # in time, so there is room for more; or too poor
            low = middle + 1
        else:
            high = middle
        if best is not None and _is_hopeless(trial, best, target):
            return


def _is_hopeless(trial: Trial, best: Trial, target: Target) -> bool:
    """Whether neither more nor less density can be better than what is known."""
    if not target.met(best):
        return False
    if target.is_time:
        return not target.met(trial) and trial.error >= best.error
    return not target.met(trial) and trial.seconds >= best.seconds


def _nearest(densities: list[float], density: float) -> int:
    return min(range(len(densities)), key=lambda index: abs(densities[index] - density))


def refine(
    found: Trial, changes: Iterable[Callable[[Preset], Preset | None]], target: Target, attempt: Try
) -> Trial:
    """Share the same mean density otherwise, and keep what errs less: then less of it is enough.

    Args:
        found: Where to start.
        changes: Each makes another preset of the best one so far, or None where it cannot.
        target: What is wanted.
        attempt: Makes a trial.
    """
    best = found
    for change in changes:
        preset = change(best.preset)
        trial = None if preset in (None, best.preset) else attempt(preset)
        if trial is not None and _errs_less(trial, best, target):
            best = trial
    return best if best is found else save(best, target, attempt, at)


def save(
    best: Trial, target: Target, attempt: Try, make: Callable[[Preset, float], Preset | None]
) -> Trial:
    """Take density away as long as the target is met.

    Args:
        best: Where to start.
        target: What is wanted.
        attempt: Makes a trial.
        make: The preset at another mean density.
    """
    for _ in range(SAVINGS):
        if target.is_time or not target.met(best):
            break
        density = best.preset.policy.mean_density or best.density
        preset = make(best.preset, round(density - STEP, 6))
        trial = None if preset is None else attempt(preset)
        if trial is None or not target.better(trial, best):
            break
        best = trial
    return best


def at(preset: Preset, density: float) -> Preset | None:
    """A preset at another mean density; None below what anything has."""
    return preset.override({"mean_density": density}) if density > 0 else None


def _errs_less(trial: Trial, best: Trial, target: Target) -> bool:
    """Whether a trial of the same density is better; one that is too slow is not."""
    in_time = not target.is_time or target.met(trial) or not target.met(best)
    return trial.error < best.error and in_time
