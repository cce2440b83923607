"""The search: against made-up presets whose error and time are known functions of density."""

import math

import pytest

from vidsparse.presets import PRESETS
from vidsparse.tuning.curves import ErrorCurves, equally
from vidsparse.tuning.search import (
    MOST,
    STEP,
    Base,
    Measure,
    Target,
    Trial,
    most_trials,
    refine,
    search,
)

BALANCED, SEMANTIC = (Base(PRESETS[name], 0.1) for name in ("balanced", "semantic"))


class World:
    """Dense takes 10 s, of which 2 s are no attention; ``semantic`` is nearer and slower."""

    def __init__(self, ramp=1.0, slow=1.5):
        self.tried, self._ramp, self._slow = [], ramp, slow

    def __call__(self, preset):
        density = preset.policy.mean_density
        self.tried.append((preset.name, density))
        slow = self._slow if preset.name == "semantic" else 1.0
        near = 3.0 if preset.name == "semantic" else 0.0
        near += self._ramp if preset.schedule.ramp_until == 0.5 else 0.0
        seconds = 2 + 8 * density * slow
        return Trial(preset, -(20 + 20 * density + near), seconds, 10 / seconds, density)


@pytest.mark.parametrize("wanted", [24.0, 28.0, 33.3])
def test_the_least_density_that_meets_a_target_is_found_by_halving(wanted):
    world, target = World(), Target(Measure.PSNR, wanted)
    found = search([BALANCED], target, world)
    assert found is not None
    exact = (wanted - 20) / 20
    assert found.density == pytest.approx(math.ceil(exact / STEP - 1e-9) * STEP)
    assert len(world.tried) <= 6 <= most_trials([BALANCED], 0)


def test_the_best_within_a_time_is_the_densest():
    found = search([BALANCED], Target(Measure.SECONDS, 5.0), World())
    assert found is not None
    assert found.density == pytest.approx(0.375)


def test_a_base_is_given_up_when_it_cannot_win():
    world, target = World(), Target(Measure.PSNR, 28.0)
    found = search([BALANCED, SEMANTIC], target, world)  # 0.4 and 5.2 s; 0.25 and 5 s
    assert found is not None
    assert (found.preset.name, found.density) == ("semantic", pytest.approx(0.25))
    world = World(slow=0.8)
    found = search([SEMANTIC, BALANCED], target, world)
    assert found is not None
    assert found.preset.name == "semantic"
    assert [each for each in world.tried if each[0] == "balanced"] == [("balanced", found.density)]


def test_without_a_preset_that_meets_the_target_the_nearest_is_given():
    target = Target(Measure.PSNR, 60.0)
    found = search([BALANCED], target, World())
    assert found is not None
    assert not target.met(found)
    assert found.density == pytest.approx(MOST)
    late = Target(Measure.SECONDS, 1.0)
    found = search([BALANCED], late, World())
    assert found is not None
    assert not late.met(found)
    assert found.density == pytest.approx(0.1)


def test_what_errs_less_saves_density():
    world, target = World(ramp=1.0), Target(Measure.PSNR, 28.0)
    found = search([BALANCED], target, world)
    assert found is not None
    changes = [lambda preset: preset.override({"ramp_until": 0.5})]
    best = refine(found, changes, target, world)
    assert best.preset.schedule.ramp_until == 0.5
    assert best.density == pytest.approx(0.35)  # 20 + 7 + 1
    worse = World(ramp=-1.0)
    assert refine(found, changes, target, worse) is found


def test_layers_share_density_as_their_errors_ask():
    low, high = 0.2, 0.4
    heights, rates = (1.0, 2.0, 0.5), (6.0, 3.0, 9.0)
    errors = [
        [[height * math.exp(-rate * at)] for height, rate in zip(heights, rates, strict=True)]
        for at in (low, high)
    ]
    found = ErrorCurves.through((low, high), (errors[0], errors[1]))
    assert found.heights == pytest.approx(heights)
    assert found.rates == pytest.approx(rates)
    shares = found.shares(0.3)
    assert math.fsum(shares) / 3 == pytest.approx(0.3)
    total = sum(h * math.exp(-r * s) for h, r, s in zip(heights, rates, shares, strict=True))
    for other in ([0.31, 0.29, 0.0], [-0.01, 0.02, -0.01], [0.02, -0.01, -0.01]):
        moved = [share + more * 0.5 for share, more in zip(shares, other, strict=True)]
        moved = [each + 0.3 - math.fsum(moved) / 3 for each in moved]
        assert total < sum(
            h * math.exp(-r * s) for h, r, s in zip(heights, rates, moved, strict=True)
        )


def test_layers_that_do_not_gain_have_what_is_left():
    flat = ErrorCurves.through((0.2, 0.4), ([[0.5], [0.5]], [[0.1], [0.5]]))
    shares = flat.shares(0.3)
    assert shares[0] > shares[1]
    assert math.fsum(shares) / 2 == pytest.approx(0.3, abs=1e-6)


def test_heads_share_density_over_all_layers_and_the_budgets_name_each():
    errors = [[0.5, 0.1], [0.3, 0.3]], [[0.1, 0.05], [0.1, 0.25]]
    base = PRESETS["balanced"].override({"mean_density": 0.4})
    found = ErrorCurves.through((0.2, 0.4), errors).preset(base, 20, "heads")
    assert found is not None
    assert found.schedule.budgets is not None
    (first, one), (second, other) = found.schedule.budgets.layers
    assert (first, second) == ("0", "1")
    assert math.fsum((*one, *other)) / 4 == pytest.approx(found.policy.density, abs=1e-3)
    assert one[0] > one[1]  # an error of which more density takes more
    assert other[0] > other[1]
    assert PRESETS["balanced"].override({"density": 0.3}).schedule.budgets is None
    same = equally(base, 0.3, errors[0], "heads")
    assert same.schedule.budgets is not None
    assert same.schedule.budgets.layers == (("0", (0.3, 0.3)), ("1", (0.3, 0.3)))
