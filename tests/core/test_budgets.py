"""Budgets of layers and heads, from a file."""

import json

import pytest
import torch

from vidsparse.budgets import Budgets
from vidsparse.engine import Call, SparseAttention
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS

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
        {"budgets": path, "min_tokens": 0, "density": 0.25, "dense_above": 1, "full_below": 1}
    )
    engine = SparseAttention(preset)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    for layer in range(3):
        engine(q, k, v, Call(grid=GRID, layer=layer, step=0, sigma=0.5), lambda *x: x[0])
    second = Call(grid=GRID, layer=1, step=0, sigma=0.5, expert="transformer_2")
    engine(q, k, v, second, lambda *x: x[0])
    each = [heads.tolist() for heads in engine.stats.calls.values()]
    assert sum(each[0]) / len(each[0]) == pytest.approx(0.25, abs=0.08)
    assert sum(each[1]) / len(each[1]) == pytest.approx(0.5, abs=0.07)
    assert each[2] == pytest.approx([0.2, 0.8], abs=0.07)
    assert sum(each[3]) / len(each[3]) == pytest.approx(0.3, abs=0.07)


def test_the_ramp_leads_to_the_budget(write):
    settings = {"budgets": write({"0": 0.2}), "min_tokens": 0, "dense_above": 1, "full_below": 0.2}
    engine = SparseAttention(PRESETS["draft"].override(settings))
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    engine(q, k, v, Call(grid=GRID, layer=0, step=0, sigma=0.6), lambda *x: x[0])
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


def test_a_preset_without_a_density_has_nothing_to_replace(write):
    with pytest.raises(BadInputError, match="no density that budgets could replace"):
        PRESETS["svg2"].override({"budgets": write({"1": 0.5})})
