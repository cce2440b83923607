"""A run costs what was asked for, whatever its scheduler, its shift and its number of steps."""

import runpy
from pathlib import Path

import pytest

from vidsparse.progress import Progress

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "schedules.py"))
# Reached in so many steps with a warm-up of 5 % and no ramp; one step of four is dear.
LEAST = {4: 0.28, 7: 0.17, 8: 0.15, 15: 0.10}  # by calls: Heun makes 7 in 4 steps
RUNS = [
    *(
        (kind, shift, steps)
        for kind in BENCH["KINDS"]
        for shift in (1.0, 12.0)
        for steps in (4, 8, 20, 50)
    ),
    *(("Euler, FLUX", pixels, steps) for pixels in (1024, 4096) for steps in (4, 20)),
]


@pytest.mark.parametrize(("kind", "shift", "steps"), RUNS)
def test_realised_mean_density_is_the_one_asked_for_or_the_least_is_said(kind, shift, steps):
    name = kind, shift
    run = list(BENCH["progress_of"](BENCH["scheduler_of"](name), steps, name))
    asked = 0.35 if steps == 50 else 0.45
    found = BENCH["outcome"](run, asked)
    assert found["realised"] == pytest.approx(asked, abs=0.02)
    low = BENCH["outcome"](run, 0.03)
    assert low == {"least": pytest.approx(LEAST.get(len(run), 0.085), abs=0.015)}


@pytest.mark.parametrize("steps", [4, 20])
def test_a_shift_of_the_noise_changes_nothing(steps):
    for kind in ("UniPC", "Euler", "DPM++"):
        for name in ((kind, 1.0), (kind, 7.0)):
            run = list(BENCH["progress_of"](BENCH["scheduler_of"](name), steps, name))
            assert run == list(Progress.first(steps).steps())
