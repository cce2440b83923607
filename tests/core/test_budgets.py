"""Budgets of layers and heads, from a file."""

import json

import pytest
import torch

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 16, 16)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "Budgets.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize("name", ["draft", "balanced", "random", "svg"])
def test_layers_and_heads_get_their_densities(write, name):
    path = write({"1": 0.5, "2": [0.2, 0.8], "transformer_2/1": 0.3})
    preset = PRESETS[name].override(
        {"budgets": path, "min_tokens": 0, "density": 0.25, "warmup": 0.0, "ramp_until": 0.0}
        | {"dense_layers": 0}
    )
    engine = SparseAttention(preset)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    for layer in range(3):
        call = Call(grid=GRID, layer=layer, step=0, progress=Progress.alone(0.5))
        engine(q, k, v, call, lambda *x: x[0])
    second = Call(grid=GRID, layer=1, step=0, progress=Progress.alone(0.5), expert="transformer_2")
    engine(q, k, v, second, lambda *x: x[0])
    each = [heads.tolist() for heads in engine.stats.calls.values()]
    assert sum(each[0]) / len(each[0]) == pytest.approx(0.25, abs=0.08)
    assert sum(each[1]) / len(each[1]) == pytest.approx(0.5, abs=0.07)
    assert each[2] == pytest.approx([0.2, 0.8], abs=0.07)
    assert sum(each[3]) / len(each[3]) == pytest.approx(0.3, abs=0.07)


def test_the_ramp_leads_to_the_budget(write):
    settings = {"budgets": write({"0": 0.2}), "min_tokens": 0, "warmup": 0.0, "ramp_until": 0.8}
    engine = SparseAttention(PRESETS["draft"].override(settings))
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    engine(q, k, v, Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.4)), lambda *x: x[0])
    assert engine.stats.mean_density == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the budgets file"),
        ([0.5], "must map layers to densities"),
        ({"one": 0.5}, "names layer 'one': give its number"),
        ({"1": 1.5}, "gives layer 1 the density 1.5: it must be in"),
        ({"1": True}, "gives layer 1 the density True"),
        ({"1": []}, "gives layer 1 no density"),
    ],
)
def test_a_wrong_file_is_refused_at_once(write, content, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS["draft"].override({"budgets": write(content)})


def test_another_number_of_heads_is_named(write):
    budgets = Budgets.read(write({"3": [0.5, 0.5]}))
    with pytest.raises(BadInputError, match="2 densities for layer 3, which has 4 heads"):
        budgets.of("transformer", 3, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"3": 0.5}, "names layer '3', and there are 3 layers: their numbers are 0 to 2"),
        ({"transformer_2/2": 0.5}, "names layer 'transformer_2/2', and there are 2 layers"),
        ({"transformer_3/0": 0.5}, "no transformer_3: there is transformer and transformer_2"),
        ({"transformer_2/1": [0.5] * 4}, "4 densities for layer 1, which has 5 heads"),
        ({"1": [0.5] * 5}, "5 densities for layer 1, which has 4 heads"),
    ],
)
def test_what_no_transformer_has_is_refused_before_a_run(write, content, message):
    budgets = Budgets.read(write(content))
    with pytest.raises(BadInputError, match=message):
        budgets.check({"transformer": (3, 4), "transformer_2": (2, 5)})


def test_what_the_transformers_have_passes(write):
    content = {"2": 0.5, "0": 0.2, "transformer/1": [0.5] * 4, "transformer_2/1": [0.5] * 5}
    Budgets.read(write(content)).check({"transformer": (3, 4), "transformer_2": (2, None)})


@pytest.mark.parametrize("name", ["draft", "balanced", "radial", "random", "psa", "semantic"])
@pytest.mark.parametrize("dense_layers", [0, 1])
def test_a_forecast_applies_budgets_as_a_run_does(write, name, dense_layers):
    content = {"1": 0.5, "2": [0.2, 0.8], "3": [0.01, 0.3], "0": 0.9}
    changes = {"budgets": write(content), "min_tokens": 0, "density": 0.25, "ramp_until": 0.6}
    preset = PRESETS[name].override(changes | {"dense_layers": dense_layers})
    grid, layers, run = TokenGrid(6, 16, 16), 5, Progress.first(6)
    engine = SparseAttention(preset, strict=True)
    for progress in run.steps():
        for layer in range(layers):
            q, k, v = (torch.randn(1, grid.tokens, 2, 8) for _ in range(3))
            call = Call(grid=grid, layer=layer, step=progress.at, progress=progress)
            engine(q, k, v, call, lambda *x: x[0])
    found = forecast(preset, grid, 6, layers)
    ran = list(engine.stats.step_density.values())
    assert found.step_density == pytest.approx(ran, abs=0.02)
    plain = forecast(preset.override({"budgets": None}), grid, 6, layers)
    assert abs(plain.step_density[-1] - found.step_density[-1]) > 0.04


def test_a_forecast_without_layers_or_of_others_cannot_apply_budgets(write):
    preset = PRESETS["draft"].override({"budgets": write({"7": 0.5, "transformer_2/0": 0.3})})
    grid = TokenGrid(6, 16, 16)
    with pytest.raises(BadInputError, match="depends on how many layers there are"):
        forecast(preset, grid, 1, None)
    with pytest.raises(BadInputError, match="names layer '7', and there are 7 layers"):
        forecast(preset, grid, 1, 7)
    assert "budgets of transformer_2 are left out" in forecast(preset, grid, 1, 8).notes[-1]


def test_a_preset_without_a_density_has_nothing_to_replace(write):
    with pytest.raises(
        BadInputError, match="budgets are densities at full sparsity, and preset 'svg2' has none"
    ):
        PRESETS["svg2"].override({"budgets": write({"1": 0.5})})
