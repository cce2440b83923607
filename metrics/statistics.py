"""What a table of clips allows to be said: intervals, paired differences, and when to say nothing.

The unit is the prompt: the seeds of one prompt are averaged first, and frames never count as
independent. Intervals cover 95 % by the bias-corrected and accelerated bootstrap over prompts
(Efron 1987); pairs are also put to the exact sign test. A value of ``None`` is infinite: the clip
equals its reference.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from vidsparse.errors import BadInputError
from vidsparse.metrics.record import Record

LEVEL = 0.95
RESAMPLES = 9999
FEWEST_FOR_INTERVAL = 3
FEWEST_FOR_VERDICT = 5

Verdict = Literal["a better", "b better", "not distinguishable", "not tested"]
FloorVerdict = Literal[
    "identical", "at the noise floor", "below the noise floor", "not distinguishable", "not tested"
]


class Summary(Record):
    """One metric of one preset, over all its clips.

    Attributes:
        mean: Over prompts of the mean over seeds; infinite values left out. None when all are.
        low: Lower end of the 95 % interval of the mean; None under three prompts.
        high: Upper end.
        prompts: Number of prompts.
        clips: Number of clips.
        identical: How many clips were infinite, and so are not in the mean.
    """

    mean: float | None
    low: float | None
    high: float | None
    prompts: int
    clips: int
    identical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two presets on the same prompts and seeds, ``a`` minus ``b``.

    Attributes:
        difference: Mean over prompts; None when no prompt has two finite values.
        low: Lower end of the 95 % interval; None under three prompts.
        high: Upper end.
        sign_p: Two-sided p of the exact sign test; ties left out, 1 when there are only ties.
        prompts: Number of prompts.
        verdict: Which is better, if that can be said; "not tested" under five prompts.
        why: The reason for the verdict, a clause.
    """

    difference: float | None
    low: float | None
    high: float | None
    sign_p: float
    prompts: int
    verdict: Verdict
    why: str


def summarize(values: Sequence[float | None], prompts: Sequence[str], *, seed: int = 0) -> Summary:
    """Average a metric over seeds, then prompts, with an interval over prompts.

    Args:
        values: One per clip, ``None`` for infinite.
        prompts: The prompt of each clip.
        seed: Of the bootstrap.

    Raises:
        BadInputError: When there is no clip, or the lengths differ.

    Example:
        >>> result = summarize([30.0, 32.0, 40.0, None], ["a", "a", "b", "c"])
        >>> result.mean, result.low, result.identical
        (35.5, None, 1)
    """
    per_prompt = _per_prompt(values, prompts)
    finite = np.array([value for value in per_prompt if value is not None])
    low, high = _interval(finite, seed)
    return Summary(
        mean=float(finite.mean()) if finite.size else None,
        low=low,
        high=high,
        prompts=len(per_prompt),
        clips=len(values),
        identical=sum(value is None for value in values),
    )


def another_prompt(
    values: Sequence[float | None], prompts: Sequence[str]
) -> tuple[float, float] | None:
    """Where one more prompt of the same kind lies, with 95 %: ``mean ± t s sqrt(1 + 1 / n)``.

    Wider than the interval of the mean, and no narrower than prompts differ, however many there
    are. It takes prompts for normally distributed.

    Args:
        values: One per clip, ``None`` for infinite, which is left out.
        prompts: The prompt of each clip.

    Returns:
        Low and high; None under three prompts.

    Example:
        >>> low, high = another_prompt([30.0, 32.0, 34.0, 36.0], "abcd")
        >>> round(low, 1), round(high, 1)
        (23.8, 42.2)
    """
    found = [value for value in _per_prompt(values, prompts) if value is not None]
    if len(found) < FEWEST_FOR_INTERVAL:
        return None
    spread = float(np.std(found, ddof=1)) * math.sqrt(1 + 1 / len(found))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(found) - 1)) * spread
    middle = sum(found) / len(found)
    return middle - half, middle + half


def paired(
    values_a: Sequence[float | None],
    values_b: Sequence[float | None],
    prompts: Sequence[str],
    *,
    floor: float | None = None,
    better: Literal["higher", "lower"] = "higher",
    seed: int = 0,
) -> Paired:
    """Compare two presets clip by clip, and say so when they cannot be told apart.

    One is better only when there are five prompts or more, the 95 % interval of the difference
    excludes 0, and not both means are as good as the noise floor or better.

    Args:
        values_a: One per clip, ``None`` for infinite (the best there is).
        values_b: The same clips.
        prompts: The prompt of each clip.
        floor: The value that dense reaches against itself with another kernel, if known.
        better: Which values are better. For a metric where closer to dense is better, pass the
            distances from dense and ``"lower"``.
        seed: Of the bootstrap.

    Raises:
        BadInputError: When there is no clip, or the lengths differ.
    """
    best = math.inf if better == "higher" else -math.inf
    a, b = (
        np.array([best if value is None else value for value in _per_prompt(values, prompts)])
        for values in (values_a, values_b)
    )
    signs = np.sign(np.where(a == b, 0.0, np.nan_to_num(a) - np.nan_to_num(b)))
    both = np.isfinite(a) & np.isfinite(b)
    gaps = a[both] - b[both]
    low, high = _interval(gaps, seed)
    p = _sign_test(signs)
    ahead, why = _judge(a, b, signs, low=low, high=high, p=p)
    if ahead and floor is not None and _reaches(a, floor, better) and _reaches(b, floor, better):
        ahead, why = 0, "both are as good as the noise floor"
    winner: Verdict = "a better" if (ahead > 0) == (better == "higher") else "b better"
    neither: Verdict = "not tested" if len(a) < FEWEST_FOR_VERDICT else "not distinguishable"
    return Paired(
        difference=float(gaps.mean()) if gaps.size else None,
        low=low,
        high=high,
        sign_p=p,
        prompts=len(a),
        verdict=winner if ahead else neither,
        why=why,
    )


def compare_to_floor(summary: Summary, floor_psnr: float | None) -> FloorVerdict:
    """Say where a PSNR lies against that of dense with another kernel.

    Args:
        summary: Of a PSNR, over prompts.
        floor_psnr: The noise floor in dB; ``None`` when those two were identical.

    Returns:
        "not tested" where there are too few prompts for an interval.
    """
    if summary.mean is None:
        return "identical"
    if floor_psnr is None:
        return "below the noise floor"
    if summary.low is None or summary.high is None:
        return "not tested"
    if summary.low >= floor_psnr:
        return "at the noise floor"
    return "below the noise floor" if summary.high < floor_psnr else "not distinguishable"


def _judge(
    a: np.ndarray,
    b: np.ndarray,
    signs: np.ndarray,
    *,
    low: float | None,
    high: float | None,
    p: float,
) -> tuple[int, str]:
    """Return which of two is larger, 1, -1 or 0 for neither, and why."""
    if len(a) < FEWEST_FOR_VERDICT:
        return 0, f"{len(a)} of {FEWEST_FOR_VERDICT} prompts"
    if not signs.any():
        return 0, "they are equal on every prompt"
    if not (np.isfinite(a) & np.isfinite(b))[signs != 0].all():  # no interval of infinite gaps
        if p >= 1 - LEVEL:
            return 0, f"the sign test allows chance, p = {p:.2g}"
        return int(np.sign(signs.sum())), f"the sign test excludes chance, p = {p:.2g}"
    if low is None or high is None or low <= 0 <= high:
        return 0, "the interval of the difference contains 0"
    return (1 if low > 0 else -1), "the interval of the difference excludes 0"


def _reaches(values: np.ndarray, floor: float, better: str) -> bool:
    """Whether the mean, infinite values left out, is as good as the floor or better."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return True
    return bool(finite.mean() >= floor if better == "higher" else finite.mean() <= floor)


def _per_prompt(values: Sequence[float | None], prompts: Sequence[str]) -> list[float | None]:
    """Return the mean of the finite values of each prompt, in order of appearance."""
    if not values or len(values) != len(prompts):
        raise BadInputError(
            f"{len(values)} values and {len(prompts)} prompts do not match: give one prompt for "
            "each clip, and one clip at least"
        )
    found: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        found.setdefault(prompt, []).extend([] if value is None else [value])
    return [sum(finite) / len(finite) if finite else None for finite in found.values()]


def _interval(values: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean, or twice None for too few values."""
    if values.size < FEWEST_FOR_INTERVAL:
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the next one then
            found = stats.bootstrap(
                (values,),
                np.mean,
                confidence_level=LEVEL,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def _sign_test(signs: np.ndarray) -> float:
    """Return the two-sided p of as many pluses among the entries that are not 0."""
    untied = int((signs != 0).sum())
    return float(stats.binomtest(int((signs > 0).sum()), untied).pvalue) if untied else 1.0
