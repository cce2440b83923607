"""The schedule: dense, a ramp, the target."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.schedule import Schedule

RAMP = Schedule(dense_above=0.9, full_below=0.5)


@pytest.mark.parametrize(
    ("sigma", "density"),
    [
        (1.0, 1.0),
        (0.9001, 1.0),
        (0.9, 1.0),
        (0.7, 0.6),  # half way from 1 to 0.2
        (0.6, 0.4),
        (0.5, 0.2),
        (0.3, 0.2),
        (0.0, 0.2),
    ],
)
def test_density_is_one_then_falls_in_a_straight_line_to_the_target(sigma, density):
    assert RAMP.density(sigma, layer=0, target=0.2) == pytest.approx(density)


@pytest.mark.parametrize(("sigma", "density"), [(0.61, 1.0), (0.6, 0.2), (0.59, 0.2)])
def test_equal_levels_make_a_switch(sigma, density):
    switch = Schedule(dense_above=0.6, full_below=0.6)
    assert switch.density(sigma, layer=0, target=0.2) == density


def test_the_first_layers_stay_dense_at_every_noise_level():
    schedule = Schedule(dense_above=1.0, full_below=1.0, dense_layers=2)
    assert [schedule.density(0.1, layer, 0.2) for layer in range(4)] == [1.0, 1.0, 0.2, 0.2]


def test_a_target_of_one_is_dense_everywhere():
    assert {RAMP.density(sigma / 10, 0, 1.0) for sigma in range(11)} == {1.0}


def test_density_never_rises_while_noise_falls():
    falling = [RAMP.density(1 - i / 50, 0, 0.3) for i in range(51)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dense_above": 1.1}, r"dense_above is a noise level in \[0, 1\], got 1.1"),
        ({"full_below": -0.1}, r"full_below is a noise level in \[0, 1\], got -0.1"),
        ({"dense_above": float("nan")}, "dense_above is a noise level"),
        (
            {"dense_above": 0.3, "full_below": 0.4},
            r"full_below \(0.4\) must not exceed dense_above",
        ),
        ({"dense_layers": -1}, "dense_layers must be at least 0, got -1"),
    ],
)
def test_impossible_schedules_are_refused(parameters, message):
    with pytest.raises(BadInputError, match=message):
        Schedule(**parameters)
