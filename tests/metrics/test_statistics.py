"""Statistics: hand-worked means, intervals that cover, and verdicts that hold back."""

import numpy as np
import pytest
from scipy import stats

from vidsparse.errors import BadInputError
from vidsparse.metrics.statistics import (
    Summary,
    another_prompt,
    compare_to_floor,
    paired,
    summarize,
)


def interval(result) -> tuple[float, float]:
    """The two ends, which are there."""
    assert result.low is not None
    assert result.high is not None
    return result.low, result.high


TEN = [f"prompt {index}" for index in range(10)]


def test_seeds_are_averaged_before_prompts():
    result = summarize([30, 32, 40], ["a", "a", "b"])
    assert result.mean == 35.5  # not 34
    assert (result.prompts, result.clips, result.identical) == (2, 3, 0)


def test_infinite_values_are_counted_and_left_out():
    result = summarize([30, None, None, None], ["a", "a", "b", "c"])
    assert (result.mean, result.identical, result.prompts) == (30, 3, 3)
    every = summarize([None, None], ["a", "b"])
    assert (every.mean, every.low, every.identical) == (None, None, 2)


def test_there_is_no_interval_under_three_prompts_however_many_seeds():
    few = summarize([30.0, 31, 32, 33], ["a", "a", "b", "b"])
    assert (few.low, few.high) == (None, None)
    assert summarize([30.0, 31, 32], ["a", "b", "c"]).low is not None


def test_equal_values_have_an_interval_of_no_width_without_a_warning(recwarn):
    result = summarize([2.5] * 4, TEN[:4])
    assert (result.low, result.high) == (2.5, 2.5)
    assert not recwarn.list


def test_the_interval_is_scipys_bca_and_the_same_every_time():
    values = np.random.default_rng(0).gamma(2, 3, 10)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    first, second = (summarize(list(values), TEN, seed=7) for _ in range(2))
    assert first == second
    assert (first.low, first.high) == pytest.approx((expected.low, expected.high))


def test_many_seeds_do_not_narrow_the_interval():
    """The unit is the prompt: repeating each value as seeds says nothing new."""
    values = [20.0, 24, 30, 31, 38]
    once = summarize(values, TEN[:5])
    often = summarize([v for v in values for _ in range(8)], [p for p in TEN[:5] for _ in range(8)])
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_a_clear_difference_is_told_in_both_directions():
    rng = np.random.default_rng(0)
    b = rng.normal(28, 3, 10)
    a = b + rng.normal(1, 0.2, 10)
    won = paired(list(a), list(b), TEN)
    assert won.verdict == "a better"
    low, high = interval(won)
    assert 0 < low < (won.difference or 0) < high
    assert won.sign_p == pytest.approx(2 / 2**10)
    assert paired(list(b), list(a), TEN).verdict == "b better"
    assert paired(list(a), list(b), TEN, better="lower").verdict == "b better"


def test_pairing_sees_what_separate_intervals_hide():
    b = np.array([20.0, 25, 30, 35, 40, 22, 27, 33, 38, 29])
    a = b + np.array([0.4, 0.6] * 5)
    separate = summarize(list(a), TEN), summarize(list(b), TEN)
    assert interval(separate[0])[0] < interval(separate[1])[1]
    assert paired(list(a), list(b), TEN).verdict == "a better"


def test_noise_is_not_distinguishable():
    rng = np.random.default_rng(1)
    result = paired(list(rng.normal(30, 2, 10)), list(rng.normal(30, 2, 10)), TEN)
    assert result.verdict == "not distinguishable"
    assert result.why == "the interval of the difference contains 0"
    low, high = interval(result)
    assert low < 0 < high


def test_four_prompts_never_decide():
    result = paired([30.0, 31, 32, 33], [20.0, 21, 22, 24], TEN[:4])
    assert (result.verdict, result.why) == (
        "not tested",
        "4 of 5 prompts",
    )
    assert interval(result)[0] > 0


def test_both_at_the_noise_floor_are_not_distinguishable():
    a, b = [50.0, 51, 52, 53, 54], [48.0, 49, 50, 51, 52]
    assert paired(a, b, TEN[:5]).verdict == "a better"
    assert paired(a, b, TEN[:5], floor=55).verdict == "a better"
    assert paired(a, b, TEN[:5], floor=51).verdict == "a better"  # b's mean is 50
    held = paired(a, b, TEN[:5], floor=49)
    assert (held.verdict, held.why) == (
        "not distinguishable",
        "both are as good as the noise floor",
    )
    low = paired(
        [0.1, 0.2, 0.1, 0.2, 0.3], [0.3, 0.4, 0.4, 0.5, 0.6], TEN[:5], floor=1, better="lower"
    )
    assert low.verdict == "not distinguishable"


def test_equal_presets_tie():
    result = paired([30.0] * 6, [30.0] * 6, TEN[:6])
    assert (result.difference, result.sign_p, result.verdict) == (0, 1, "not distinguishable")
    both = paired([None] * 6, [None] * 6, TEN[:6])
    assert (both.difference, both.sign_p, both.verdict) == (None, 1, "not distinguishable")


def test_identical_to_dense_beats_any_finite_value_once_there_are_prompts_enough():
    five, six = ([None] * n for n in (5, 6))
    assert paired(six, [40.0] * 6, TEN[:6]).verdict == "a better"
    assert paired([40.0] * 6, six, TEN[:6]).verdict == "b better"
    short = paired(five, [40.0] * 5, TEN[:5])
    assert short.sign_p == pytest.approx(0.0625)
    assert short.verdict == "not distinguishable"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        found = summarize(list(rng.normal(30, 3, 20)), [str(i) for i in range(20)], seed=trial)
        low, high = interval(found)
        hits += low <= 30 <= high
    assert 50 <= hits <= 60


def summary(mean, low=None, high=None):
    return Summary(mean=mean, low=low, high=high, prompts=4, clips=4, identical=0)


@pytest.mark.parametrize(
    ("value", "floor", "expected"),
    [
        (summary(None), 40, "identical"),
        (summary(30, 29, 31), None, "below the noise floor"),
        (summary(30, 29, 31), 40, "below the noise floor"),
        (summary(45, 41, 48), 40, "at the noise floor"),
        (summary(40, 35, 45), 40, "not distinguishable"),
        (summary(30), 40, "not tested"),
    ],
)
def test_a_summary_is_placed_against_the_noise_floor(value, floor, expected):
    assert compare_to_floor(value, floor) == expected


def test_values_without_a_prompt_are_refused():
    with pytest.raises(BadInputError, match="2 values and 1 prompts do not match"):
        summarize([1.0, 2.0], ["a"])
    with pytest.raises(BadInputError, match="one clip at least"):
        summarize([], [])
    with pytest.raises(BadInputError, match="1 values and 2 prompts"):
        paired([1.0, 2.0], [1.0], ["a", "b"])


def test_one_more_prompt_lies_where_prompts_lie_and_not_where_their_mean_does():
    rng = np.random.default_rng(0)
    inside, narrower = 0, 0
    for _ in range(400):
        *seen, new = rng.normal(30, 3, size=7)
        values, prompts = [x for x in seen for _ in range(2)], [str(i // 2) for i in range(12)]
        low, high = another_prompt(values, prompts) or (0, 0)
        inside += low <= new <= high
        of_mean = summarize(values, prompts)
        narrower += of_mean.low <= new <= of_mean.high
    assert 0.92 < inside / 400 < 0.98
    assert narrower / 400 < 0.8
    assert another_prompt([30.0, 31.0, 35.0], ["a", "a", "b"]) is None
    assert another_prompt([30.0, None, 35.0], ["a", "b", "c"]) is None  # two that are finite
