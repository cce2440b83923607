"""Timing in turns, and where the time of a generation goes."""

import math
from types import SimpleNamespace

import pytest

from vidsparse.metrics.latency import Stages, amdahl, take_turns, timing_doubts


def test_candidates_alternate_and_the_first_round_does_not_count():
    calls = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls[-6:]) == "ababab"
    assert {name: timing.rounds for name, timing in times.items()} == {"a": 3, "b": 3}


@pytest.fixture
def pass_time(monkeypatch):
    """A clock that only moves when it is told to: how busy the machine is does not matter."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("vidsparse.metrics.latency.time", clock)
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_the_median_is_in_milliseconds_and_ignores_one_slow_round(pass_time):
    pauses = iter([9, 9, 0.01, 0.012, 0.2, 0.012, 0.012])  # the first two do not count
    timing = take_turns({"nap": lambda: pass_time(next(pauses))}, rounds=5)["nap"]
    assert timing.median == pytest.approx(12)
    assert timing.spread == pytest.approx(0)


def test_a_short_candidate_is_repeated_within_its_turn(pass_time):
    calls = []
    timing = take_turns({"nap": lambda: (calls.append(0), pass_time(0.0024))}, rounds=2,
                        at_least_ms=20.0)["nap"]  # fmt: skip
    assert len(calls) == 2 + 2 * 8
    assert timing.median == pytest.approx(2.4)


def test_a_candidate_settles_within_its_turn_before_it_is_timed(pass_time):
    calls = []
    pauses = iter([9.0, 0.01, *[5.0, 5.0, 0.012] * 2])  # compile, once; then each turn
    timing = take_turns({"nap": lambda: (calls.append(0), pass_time(next(pauses)))}, rounds=2,
                        settle_ms=19.0)["nap"]  # fmt: skip
    assert len(calls) == 2 + 2 * 3
    assert timing.median == pytest.approx(12)


def test_what_is_in_no_stage_is_other_and_stages_add_up():
    stages = Stages(total=10, text_encoder=1, attention=4, planning=0.5, vae=2)
    assert stages.other == 2.5
    found = stages.model_dump()
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


def stages(rest, attention):
    return Stages(total=rest + attention, attention=attention)


def test_equal_work_is_all_but_attention_and_planning():
    found = Stages(total=10, text_encoder=1, attention=4, planning=0.5, vae=2)
    assert found.equal_work == found.text_encoder + found.vae + found.other == 5.5


def test_equal_work_that_took_unequal_time_is_said_whichever_run_was_slower():
    (doubt,) = timing_doubts(stages(20.8, 10), stages(63.8, 5), 0.5)
    assert doubt == (
        "the same work (all but attention) took 20.8 s dense and 63.8 s sparse: the machine was "
        "not as fast in both"
    )
    doubts = timing_doubts(stages(63.8, 10), stages(20.8, 5), 0.5)
    assert "took 63.8 s dense and 20.8 s sparse" in doubts[0]


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (stages(10, 10), stages(10, 5)),
        (stages(10, 10), stages(10.9, 5)),  # within a tenth
        (stages(0.1, 10), stages(0.2, 5)),  # twice as long, and a hundredth of the run
    ],
)
def test_what_is_alike_or_does_not_matter_is_not_said(dense, sparse):
    assert timing_doubts(dense, sparse, 0.5) == []


def test_more_than_free_attention_would_give_is_said():
    doubts = timing_doubts(stages(98.8, 1.2), stages(74.2, 1.0), 0.5)
    assert doubts[1] == (
        "1.33x is more than sparsity can give: attention is 1.2 % of a dense run, so without any "
        "attention it would be 1.01x"
    )


def test_more_than_the_density_gives_is_said_with_the_kernel_efficiency():
    (doubt,) = timing_doubts(stages(10, 10), stages(10, 3), 0.5)
    assert doubt == (
        "1.54x is more than the ideal 1.33x of density 0.50: attention is 50.0 % of a dense run, "
        "and its kernel efficiency was 1.67"
    )
    assert timing_doubts(stages(10, 10), stages(10, 5.0), 0.5) == []
