"""Timing in turns, and where the time of a generation goes."""

import math
import time

import pytest

from vidsparse.metrics.latency import Stages, amdahl, take_turns


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


def test_what_is_in_no_stage_is_other_and_stages_add_up():
    stages = Stages(total=10, text_encoder=1, attention=4, planning=0.5, vae=2)
    assert stages.other == 2.5
    found = stages.to_json()
    assert found.pop("total") == sum(found.values())


def test_amdahl_of_a_run_without_sparsity_is_one():
    dense = Stages(total=10, attention=8)
    found = amdahl(dense, dense, 1.0)
    assert (found.achieved, found.kernel_efficiency) == (1, 1)
    assert found.ideal == pytest.approx(1)


def test_planning_costs_speed_but_not_kernel_efficiency():
    dense = Stages(total=10, attention=8)
    found = amdahl(dense, Stages(total=5, attention=2, planning=1), 0.25)
    assert (found.kernel_efficiency, found.achieved) == (1, 2)
    assert found.ideal == pytest.approx(2.5)
    assert found.limit == pytest.approx(5)
    assert amdahl(Stages(total=8, attention=8), dense, 0.5).limit == math.inf
