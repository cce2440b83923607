"""Parameters: each that is listed acts, and any other is refused."""

from enum import StrEnum
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.compensation import Levels, NoCompensation, Residual
from vidsparse.policies.orders import Hilbert, Tile
from vidsparse.policies.random import Random
from vidsparse.policies.scope import Scope
from vidsparse.policies.selectors import Budget, MassOf, TopK, TopP
from vidsparse.policies.tolerance import Tolerance
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID, LARGE = TokenGrid(6, 8, 8, 0, 3), TokenGrid(8, 12, 12)
FILES = ("budgets", "margins", "choices", "most_gigabytes")  # they have tests of their own
DONE = (0.03, 0.1, 0.3, 0.4, 0.5)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def results(preset, grid, layers):
    """Output and densities so far of each call of a short run whose tokens change by step."""
    engine = SparseAttention(preset)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, layers, grid.tokens, 3, 8, generator=generator)
    for step, done in enumerate(DONE):
        progress = Progress.alone(done)
        for index, branch in enumerate(("cond", "uncond")):
            for layer in range(layers):
                x = start[index, :, layer] + 0.3 * step * start[1 - index, :, layer]
                call = Call(grid=grid, layer=layer, step=step, progress=progress, branch=branch)
                q, k, v = x[:, None]
                yield engine(2 * q, 2 * k, v, call, dense), engine.stats.step_density


def other_values(name, value):
    """What a parameter may be instead."""
    if isinstance(value, StrEnum):
        return [each for each in type(value) if each is not value]
    if isinstance(value, bool):
        return [not value]
    if name == "axes":
        return ["fhw", "hwf"]
    if name == "scoring_heads":
        return [1, 2]
    if name == "min_similarity":
        return [0.15, 1.0]
    if name in ("block", "key_block"):
        return [32, 64]
    if value is None and name in ("q_clusters", "kv_clusters"):
        return [5, 7]
    if name == "min_tokens":
        return [10_000]
    if name in ("density", "p", "tolerance"):
        return [0.5, 0.2, 0.9]
    if name in FILES:
        return []
    if name == "must_keep":
        return ["0-20"]
    if isinstance(value, int):
        return [value + 1, 4 * value, 1, 2, 0]
    return [0.5, 0.1, 0.2, 0.9, 1.0, 2.0, 0.01, 40.0]


def acts(preset, name, value, grid, layers, before):
    two = preset.schedule.dense_layers + 2  # with one, there is nobody to share with
    if name == "share_layers" and layers < two:
        layers, before = two, list(results(preset, grid, two))
    for other in other_values(name, value):
        try:
            after = results(preset.override({name: other}), grid, layers)
            if any(differ(*calls) for calls in zip(before, after, strict=True)):
                return True
        except BadInputError:  # refused, or out of reach of the mean density
            continue
    return False


def differ(before, after):
    return before[1] != after[1] or not torch.equal(before[0], after[0])


@pytest.mark.usefixtures("int8_on_cpu", "dense_measured_on_cpu")
@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_that_is_listed_acts(name):
    settings: dict[str, Any] = {
        "min_tokens": 0,
        "q_clusters": 6,
        "kv_clusters": 11,
        "first_iterations": 8,
        "block": 16,
        "radius": 3.0,
        "tolerance": 0.5,
    }
    settings |= {f"{kind}_{axis}": 2 for kind in ("unit", "tile") for axis in ("height", "width")}
    settings |= {"window_frames": 4, "window_height": 4, "window_width": 4, "window": 64}
    settings |= {"columns": 32, "diagonals": 48}
    preset, grid = PRESETS[name], GRID
    known = preset.parameters()
    if name == "gna":
        settings |= {f"stride_{axis}": 2 for axis in ("frames", "height", "width")}
    if name == "psa":
        settings, grid = {"min_tokens": 0, "tile_width": 4}, LARGE
    if name == "freeswim":
        settings["window_width"] = 3  # two blocks of this grid
    if name == "sparge":
        settings |= {"min_similarity": 0.03, "p": 0.5}  # 16 random tokens are alike by 1 / 16
    if not preset.schedule.ramp_until:
        settings["ramp_until"] = 0.4  # a warm-up needs room
    if name == "lite-attention":  # drops blocks in so few steps
        settings["margin"] = -1.0
    if name in ("adaspa", "sparsed"):  # heads that keep more than .8, and a second search
        settings |= {"density": 0.6, "replan": 1}
    if name == "sparse-vdit":  # heads that neither skip everything nor nothing
        settings["density"] = 0.6
    if name == "vorta":  # heads that take the window of random tokens
        settings |= {"tile_frames": 4, "unit_frames": 4, "most_loss": 2.0}
    if name == "rainfusion":  # bands that hold about enough
        settings |= {"density": 0.6, "recall": 0.6}
    if name in ("quality", "semantic"):  # as many clusters as blocks
        settings |= {"q_clusters": None, "kv_clusters": None, "mean_density": 0.5}
    if name == "turbo":
        settings["mean_density"] = 0.5  # a row of this grid would keep but one block
    preset = preset.override({key: value for key, value in settings.items() if key in known})
    # orders by layer, heads that choose alike, first layers that are dense
    layers = 3 if name in ("vmoba", "svg", "rainfusion") or preset.schedule.dense_layers else 1
    before = list(results(preset, grid, layers))
    still = [
        key
        for key, value in preset.parameters().items()
        if key not in FILES and not acts(preset, key, value, grid, layers, before)
    ]
    assert still == []


@pytest.mark.parametrize(
    ("name", "changes", "near"),
    [
        ("balanced", {"level2": 0.5}, "there is"),
        ("balanced", {"choose_every": 7}, "there is"),
        ("balanced", {"sampled_rows": 3}, "there is"),
        ("balanced", {"mass_of": "head"}, "did you mean mass"),
        ("balanced", {"p": 0.2}, "there is"),
        ("balanced", {"tolerance": 0.2}, "there is"),
        ("svg2", {"selector": "budget", "density": 0.3, "p": 0.2}, "there is"),
        ("psa", {"compensation": "none", "level2": 0.2}, "there is"),
        ("draft", {"order": "hilbert", "tile_width": 8}, "there is"),
    ],
)
def test_a_parameter_of_parts_that_are_not_there_is_unknown(name, changes, near):
    message = f"preset '{name}' has no parameter '{[*changes][-1]}': .*{near}"
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("svg2", {"density": 0.3, "p": 0.5}, "p does nothing in preset 'svg2': the density says"),
        ("svg2", {"mean_density": 0.3, "p": 0.5}, "p does nothing in preset 'svg2': the density"),
        ("auto", {"mean_density": 0.3, "tolerance": 0.1}, "tolerance does nothing in preset"),
        ("lite", {"mean_density": 0.3}, "this preset has no density: change its margin"),
        ("svg2", {"scope": "head"}, "scope does nothing .*: it is of a density, and here p says"),
        ("auto", {"density": 0.3}, "this preset has no density: change its tolerance"),
        ("auto", {"floor": 0.3}, "floor does nothing .*: the error is measured of a whole layer"),
        ("svg2", {"block": 32}, "block does nothing .*: the clusters .* of sizes of their own"),
        ("clear", {"density": 0.3, "radius": 4}, "radius does nothing .*: the density sets"),
        ("radial", {"replan": 4}, "replan does nothing .*: the plan is the same at every step"),
        ("svg", {"replan": 4}, "replan does nothing .*: the plan is the same at every step"),
        ("random", {"share_branches": False}, "share_branches does nothing"),
        ("lite", {"share_branches": False}, "share_branches does nothing"),
        ("balanced", {"rows": 4}, "rows does nothing .*: it belongs to mass=rows, and mass is sub"),
        ("balanced", {"mass": "pooled", "parts": 2}, "parts does nothing .* and mass is pooled"),
    ],
)
def test_a_parameter_that_does_nothing_is_refused_and_says_what_decides(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (
            "balanced",
            {"selector": "top_p", "p": "0.3", "mass_of": "head"},
            {"selector": TopP(p=0.3, mass_of=MassOf.HEAD), "density": None, "mean_density": None},
        ),
        (
            "balanced",
            {"selector": "top_p", "density": "0.3", "scope": "head"},
            {"selector": TopP(scope=Scope.HEAD), "density": 0.3, "mean_density": None},
        ),
        (
            "balanced",
            {"selector": "top_p", "mean_density": 0.3},
            {"selector": TopP(), "density": None, "mean_density": 0.3},
        ),
        (
            "balanced",
            {"selector": "tolerance", "tolerance": 0.1, "sampled_rows": 9},
            {"selector": Tolerance(tolerance=0.1, sampled_rows=9), "mean_density": None},
        ),
        ("svg2", {"selector": "budget", "density": 0.2}, {"selector": Budget()}),
        (
            "balanced",
            {"selector": "TOP_K", "compensation": "levels", "level4": "0.2", "block": "128"},
            {"selector": TopK(), "compensation": Levels(level4=0.2), "block": 128},
        ),
        ("draft", {"compensation": "residual", "replan": 5}, {"compensation": Residual()}),
        ("draft", {"estimator": "random", "seed": 3}, {"estimator": Random(seed=3)}),
        ("draft", {"order": "tile", "tile_frames": 2}, {"order": Tile(tile_frames=2)}),
        ("balanced", {"order": Hilbert()}, {"order": Hilbert()}),
        ("sta", {"tile_width": 8}, {"order": Tile(tile_frames=4, tile_height=4, tile_width=8)}),
    ],
)
def test_parts_are_given_by_name_with_their_own_parameters(name, changes, parts):
    policy = PRESETS[name].override(changes).policy
    assert {each: getattr(policy, each) for each in parts} == parts


def test_what_is_given_takes_the_place_of_what_decided_before():
    svg2 = PRESETS["svg2"].override({"density": 0.3})
    assert "p" not in svg2.parameters()
    again = svg2.override({"p": 0.7})
    assert (again.policy.density, again.parameters()["p"]) == (None, 0.7)
    radial = PRESETS["radial"].override({"density": 0.6}).override({"decay": 0.4})
    assert (radial.policy.density, radial.parameters()["decay"]) == (None, 0.4)
    lite = PRESETS["adaspa"].override({"estimator": "observed", "selector": "threshold"})
    assert (lite.policy.density, lite.schedule.replan) == (None, 1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("svg2", {"selector": "top_p"}, r"selector=top_p needs p, .* in \(0, 1\], or a density"),
        ("balanced", {"selector": "tolerance"}, "selector=tolerance needs tolerance, the relative"),
        ("svg2", {"selector": "budget"}, "only ranks blocks: give it a density"),
        ("psa", {"compensation": "levels"}, "compensation=levels needs level2, level4 or level8"),
        ("draft", {"compensation": "residual"}, "give replan, of 2 steps at least"),
        ("draft", {"selector": "top"}, "unknown selector 'top': did you mean top_p or top_k"),
        ("draft", {"selector": TopK}, "selector takes top_k or .* or such a part, got"),
        ("draft", {"compensation": TopK()}, "compensation takes none or .*, or such a part, got"),
        ("draft", {"order": 3}, "order takes raster or .*, or such a part, got 3"),
        ("vmoba", {"order": "cycle", "chunk_frames": 0}, "chunk_frames must be at least 1, got 0"),
    ],
)
def test_what_a_part_needs_is_said_in_a_sentence(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


def test_a_compensation_that_is_none_leaves_nothing_of_its_own():
    plain = PRESETS["psa"].override({"compensation": "none"})
    assert plain.policy.compensation == NoCompensation()
    assert not [name for name in plain.parameters() if name.startswith("level")]


def test_numbers_of_numpy_are_numbers():
    made = PRESETS["draft"].override(
        {"density": np.float32(0.25), "block": np.int64(64), "replan": np.int32(2)}
    )
    assert (made.policy.density, made.policy.block, made.schedule.replan) == (0.25, 64, 2)
    assert type(made.policy.density) is float
    with pytest.raises(BadInputError, match=r"replan takes a whole number, got 1\.5"):
        PRESETS["draft"].override({"replan": np.float32(1.5)})
    with pytest.raises(BadInputError, match="density takes a number, got True"):
        PRESETS["draft"].override({"density": np.bool_(True)})
