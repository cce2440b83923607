"""Timing in turns."""

import time

from vidsparse.metrics.latency import take_turns


def test_candidates_alternate_and_the_first_round_does_not_count():
    calls = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls[-6:]) == "ababab"
    assert {name: timing.rounds for name, timing in times.items()} == {"a": 3, "b": 3}


def test_the_median_is_in_milliseconds_and_ignores_one_slow_round():
    pauses = iter([0, 0, 0.01, 0.01, 0.2, 0.01, 0.01])
    timing = take_turns({"nap": lambda: time.sleep(next(pauses))}, rounds=5)["nap"]
    assert 9 < timing.median < 60
    assert timing.spread < 100


def test_a_short_candidate_is_repeated_within_its_turn():
    calls = []
    timing = take_turns({"nap": lambda: (calls.append(0), time.sleep(0.002))}, rounds=2,
                        at_least_ms=20.0)["nap"]  # fmt: skip
    assert len(calls) >= 2 + 2 * 4
    assert timing.median < 15
