"""The schedule: dense, a ramp, full sparsity, in shares of the run."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.progress import Progress
from vidsparse.schedule import Schedule


def ways(steps, start=0.0, **schedule):
    return Schedule(**schedule).ways(Progress.first(steps, start))


def test_a_step_is_dense_then_on_a_straight_line_then_at_full_sparsity():
    found = ways(20, warmup=0.1, ramp_until=0.3, cooldown=0.05)
    assert found == pytest.approx([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, *[1] * 13, 0])


@pytest.mark.parametrize("steps", [1, 4, 7, 8, 20, 40, 50, 1000])
def test_the_warm_up_and_the_cool_down_are_a_step_at_least_and_the_ramp_keeps_its_mean(steps):
    found = ways(steps, warmup=0.05, ramp_until=0.3, cooldown=0.05)
    assert found[0] == found[-1] == 0
    assert found.count(0) <= 2 * (1 + 0.05 * steps)
    assert ways(steps, warmup=0.0, ramp_until=0.0) == [1.0] * steps
    if steps >= 20:
        of_line = 1 - (0.05 + 0.3) / 2
        assert sum(ways(steps, warmup=0.05, ramp_until=0.3)) / steps == pytest.approx(
            of_line, abs=0.51 / steps
        )


def test_shares_that_are_whole_steps_are_met_to_the_step():
    for steps in range(1, 101):
        for dense in range(steps + 1):
            share = dense / steps
            assert ways(steps, warmup=share, ramp_until=share).count(0) == dense
            assert ways(steps, warmup=0, ramp_until=0, cooldown=share).count(0) == dense


def test_a_run_that_starts_on_the_way_has_its_warm_up_behind_it():
    assert ways(10, start=0.4, warmup=0.05, ramp_until=0.3) == [1.0] * 10
    late = ways(10, start=0.2, warmup=0.05, ramp_until=0.3)
    assert late[0] == pytest.approx((0.24 - 0.05) / 0.25)
    assert late[2:] == [1.0] * 8


def test_equal_shares_make_a_switch():
    assert ways(10, warmup=0.4, ramp_until=0.4) == [0.0] * 4 + [1.0] * 6


def test_the_first_layers_stay_dense_at_every_step():
    schedule = Schedule(warmup=0.0, ramp_until=0.0, dense_layers=2)
    assert [schedule.way(Progress.alone(0.9), layer) for layer in range(4)] == [0, 0, 1, 1]


def test_density_never_rises_before_the_cool_down():
    found = ways(50)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": 1.1}, r"warmup is a share of the run in \[0, 1\], got 1.1"),
        ({"ramp_until": -0.1}, r"ramp_until is a share of the run in \[0, 1\], got -0.1"),
        ({"cooldown": 2}, "cooldown is a share of the run"),
        ({"warmup": float("nan")}, "warmup is a share of the run"),
        ({"warmup": 0.4}, r"ramp_until \(0.3\) comes before the end of the warm-up \(0.4\)"),
        ({"dense_layers": -1}, "dense_layers must be at least 0, got -1"),
    ],
)
def test_impossible_schedules_are_refused(parameters, message):
    with pytest.raises(BadInputError, match=message):
        Schedule(**parameters)
