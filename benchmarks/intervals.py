"""How sure a mean over clips is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

from scipy import stats


def half_interval(each: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean; 0 of one number."""
    if len(each) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(each) - 1)) * stdev(each) / len(each) ** 0.5
