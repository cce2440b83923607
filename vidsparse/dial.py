"""The dial: what a whole run costs, and the density at full sparsity that follows from it."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from vidsparse.errors import OutOfReachError
from vidsparse.progress import UNKNOWN, Progress

if TYPE_CHECKING:
    from vidsparse.preset import Preset

LEAST = 0.02  # density at full sparsity, below which nothing is worth computing
HALVINGS = 30


def full_density(
    preset: Preset,
    run: Progress,
    *,
    layers: int | None = None,
    means: float = 0.0,
    besides: float = 0.0,
) -> float:
    """The density at full sparsity at which a run has the preset's mean density.

    Args:
        preset: With a ``mean_density``.
        run: Of any of its steps.
        layers: How many self-attention layers there are; None leaves ``dense_layers`` out.
        means: Blocks of keys over keys, of which compensations compute besides.
        besides: Share of all pairs that a plan keeps beside its density.

    Raises:
        OutOfReachError: When it cannot be reached, with the least that can.
    """
    asked = preset.policy.mean_density
    assert asked is not None

    ways = preset.schedule.ways(run)

    def mean(density: float) -> float:
        return _mean(preset, ways, density, layers, means, besides)

    low, high = LEAST, 1.0
    if mean(low) > asked + 5e-4:
        raise OutOfReachError(_out_of_reach(preset, run, asked, mean(low)))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) > asked else (middle, high)
    return high if mean(high) <= asked else low


def density_or_note(
    preset: Preset,
    run: Progress,
    *,
    layers: int | None = None,
    means: float = 0.0,
    besides: float = 0.0,
    strict: bool = False,
) -> tuple[float, str | None]:
    """The density at full sparsity of any run, and what to say where it is not ``full_density``.

    A run of few steps, the first of which is dense, may be unable to have a mean density that is
    the preset's own, which nobody asked for: its sparse steps then are as sparse as those of a run
    of many.

    Args:
        preset: As in ``full_density``; so are the others.
        run: Of any of its steps.
        layers: How many self-attention layers there are.
        means: Blocks of keys over keys.
        besides: Share of all pairs that a plan keeps beside its density.
        strict: Whether a preset's own mean density is one that was asked for, too.

    Raises:
        OutOfReachError: When a mean density that was asked for cannot be reached, or one not even
            by a run of many steps.
    """

    def of(run: Progress) -> float:
        return full_density(preset, run, layers=layers, means=means, besides=besides)

    try:
        return of(run), None
    except OutOfReachError as error:
        if strict or "mean_density" in preset.told:
            raise
        try:
            density = of(Progress.first(UNKNOWN))
        except OutOfReachError:
            raise error from None
    mean = mean_density(preset, run, density, layers=layers, means=means, besides=besides)
    steps = _steps(run)
    return density, (
        f"a run of {steps} cannot have the mean density {preset.policy.mean_density:g} of preset "
        f"{preset.name!r}: it has {mean:.2f}, and its sparse steps {density:.2f} as in a run of "
        f"{UNKNOWN} steps"
        if mean < 1
        else f"preset {preset.name!r} leaves no step of a run of {steps} to be sparse: give "
        "warmup=0 and ramp_until=0, or more steps"
    )


def mean_density(
    preset: Preset,
    run: Progress,
    density: float,
    *,
    layers: int | None = None,
    means: float = 0.0,
    besides: float = 0.0,
) -> float:
    """The mean density of a run, dense steps and layers, compensation and correction included.

    Args:
        preset: What to compute, and when.
        run: Of any of its steps.
        density: Of the plans at full sparsity.
        layers: As in ``full_density``.
        means: As in ``full_density``.
        besides: As in ``full_density``.
    """
    return _mean(preset, preset.schedule.ways(run), density, layers, means, besides)


def _mean(
    preset: Preset,
    ways: list[float],
    density: float,
    layers: int | None,
    means: float,
    besides: float,
) -> float:
    """``mean_density`` of a run whose steps are so far on their way to full sparsity."""
    schedule = preset.schedule
    planned = [1 - way * (1 - density) * (1 - besides) for way in ways]
    more = preset.policy.pairs(ways, planned, replan=schedule.replan, means=means)
    sparse = sum(planned + more) / len(ways)
    dense = min(1.0, schedule.dense_layers / layers) if layers else 0.0
    return dense + (1 - dense) * sparse


def _out_of_reach(preset: Preset, run: Progress, asked: float, least: float) -> str:
    schedule = preset.schedule
    given = {
        "warmup": schedule.warmup,
        "ramp_until": schedule.ramp_until,
        "cooldown": schedule.cooldown,
        "dense_layers": schedule.dense_layers,
    }
    said = ", ".join(f"{name}={value:g}" for name, value in given.items() if value)
    possible = ceil(round(100 * least, 6)) / 100
    return (
        f"mean_density={asked:g} cannot be reached in a run of {_steps(run)}"
        f"{' with ' if said else ''}{said}: the least is "
        f"{possible:.2f}; give mean_density={possible:g}{' or more' if possible < 1 else ''}, or "
        "leave less dense"
    )


def _steps(run: Progress) -> str:
    steps = len(run.bounds) - 1
    return f"{steps} step{'s' if steps > 1 else ''}"
