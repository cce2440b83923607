"""How long calls take, measured in turns: medians of candidates that share every disturbance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one candidate.

    Attributes:
        median: Of all rounds.
        spread: Interquartile range.
        rounds: How many rounds were timed.
    """

    median: float
    spread: float
    rounds: int


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    device: str = "cpu",
    at_least_ms: float = 0.0,
) -> dict[str, Timing]:
    """Time candidates one after another, round after round, after one round that does not count.

    A GPU slows down as it warms up and as its power limit bites, so what is measured minutes
    apart is not comparable; what takes turns is.

    Args:
        candidates: Functions without arguments, by name.
        rounds: Rounds that count.
        device: Where they run: CUDA is timed with events, the rest by the clock.
        at_least_ms: A short candidate is repeated within its turn until it fills this time.
    """
    clock = _events if device.startswith("cuda") else _clock
    repeats: dict[str, int] = {}
    for name, function in candidates.items():
        function()  # compile, allocate
        once = clock(function, 1)
        repeats[name] = max(1, int(at_least_ms / max(once, 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            times[name].append(clock(function, repeats[name]) / repeats[name])
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0, len(values))
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), third - first, len(values))


def _events(function: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _clock(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e3 * (time.perf_counter() - start)
