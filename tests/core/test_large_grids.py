"""On many blocks a forecast makes no plan of them all, and says the same."""

from time import perf_counter

import pytest

from vidsparse import forecast
from vidsparse.grid import TokenGrid
from vidsparse.presets import find_preset

MILLION = TokenGrid(84, 90, 140)


@pytest.mark.parametrize("name", ["balanced", "radial", "random", "adaspa"])
def test_a_million_tokens_are_planned_in_seconds(name):
    started = perf_counter()
    found = forecast.forecast(find_preset(name), MILLION, 20, layers=40)
    assert perf_counter() - started < 20  # under 5 on a machine that does nothing else
    policy = find_preset(name).policy
    if policy.mean_density is not None:
        assert found.mean_density == pytest.approx(policy.mean_density, abs=1e-3)
    elif policy.density is not None:
        assert found.block_density == pytest.approx(policy.density, abs=1e-3)
    else:
        assert found.token_density < found.block_density < 2 * found.token_density


@pytest.mark.parametrize("grid", ["21x30x40", "33+9x48x48", "9x48x48+300"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("draft", {}),
        ("balanced", {"density": 0.05}),
        ("balanced", {"density": 0.01}),
        ("radial", {}),
        ("radial", {"density": 0.01}),
        ("clear", {}),
    ],
)
def test_many_blocks_have_the_density_of_their_plan(monkeypatch, grid, name, changes):
    changes = {"warmup": 0, "ramp_until": 0, "block": 64} | changes
    preset, grid = find_preset(name).override(changes), TokenGrid.parse(grid)
    whole = forecast.forecast(preset, grid, 1, layers=4).block_density
    monkeypatch.setattr(forecast, "LARGE", 200)
    rule = preset.policy.estimator.has_mask and preset.policy.static
    found = forecast.forecast(preset, grid, 1, layers=4)
    assert found.block_density == pytest.approx(whole, rel=0.05 if rule else 2e-3)
    assert bool(found.notes) == rule
