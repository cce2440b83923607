"""The dial: the density at full sparsity that follows from the mean density of a whole run."""

import re

import pytest
import torch

from vidsparse.dial import LEAST, density_or_note, full_density, mean_density
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(6, 16, 16)  # 96 blocks of 16
COMPENSATIONS = {
    "none": ("balanced", {}),
    "rescale": ("rectified", {}),
    "centroid": ("semantic", {"q_clusters": 40, "kv_clusters": 60}),
    "levels": ("psa", {}),
    "residual": ("draft", {"compensation": "residual", "replan": 4}),
    "residual kept longer": ("draft", {"compensation": "residual", "replan": 8}),
}


def dense(q, k, v):
    return q


def asking(name="balanced", mean=0.35, **changes):
    return PRESETS[name].override({"mean_density": mean, "min_tokens": 0} | changes)


def realised(preset, run, grid=GRID, layers=1):
    engine = SparseAttention(preset, strict=True)
    for step in run.steps():
        for layer in range(layers):
            q, k, v = torch.randn(3, 1, grid.tokens, 2, 8)
            call = Call(grid=grid, layer=layer, layers=layers, step=step.at, progress=step)
            engine(q, k, v, call, dense)
    return engine.stats.mean_density


@pytest.mark.parametrize("steps", [4, 8, 20, 50])
@pytest.mark.parametrize("asked", [0.55, 0.6, 0.9])
@pytest.mark.parametrize("name", COMPENSATIONS)
def test_the_density_solves_to_the_mean_whatever_compensates(name, asked, steps):
    preset, changes = COMPENSATIONS[name]
    chosen, run = asking(preset, asked, **changes), Progress.first(steps)
    found = full_density(chosen, run, layers=40, means=0.01)
    assert LEAST <= found <= 1
    mean = mean_density(chosen, run, found, layers=40, means=0.01)
    assert mean == pytest.approx(asked, abs=1e-3)


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_a_run_costs_what_was_asked_for(name):
    preset, changes = COMPENSATIONS[name]
    blocks = {} if preset in ("psa", "semantic") else {"block": 16}
    chosen = asking(preset, 0.5, **changes, **blocks)
    grid = TokenGrid(8, 32, 32) if preset == "psa" else GRID  # whose blocks are of 128
    # Rows of a whole number of blocks, a first draft of text and the like round.
    assert realised(chosen, Progress.first(8), grid) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("layers", [2, 4])
def test_layers_that_are_always_dense_are_paid_for(layers):
    chosen, run = asking(mean=0.7, dense_layers=1, block=16), Progress.first(20)
    assert realised(chosen, run, layers=layers) == pytest.approx(0.7, abs=0.01)
    free = full_density(asking(mean=0.7), run, layers=layers)
    assert full_density(chosen, run, layers=layers) < free - 0.1
    assert full_density(chosen, run) == pytest.approx(free)  # of how many layers is not known


def test_a_run_that_starts_on_the_way_spends_on_the_steps_it_has():
    late = Progress.first(20).bounds[8:]
    of_blocks = 0.35 - 1 / 128  # beside exact rows
    assert full_density(asking(), Progress(late, 0)) == pytest.approx(of_blocks, abs=1e-6)
    assert realised(asking(block=16), Progress(late, 0)) == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize(("name", "mean"), [("fast", 0.36), ("turbo", 0.31)])
def test_few_steps_are_as_sparse_as_those_of_many_and_what_they_cost_is_said(name, mean):
    chosen, run = PRESETS[name].override({"min_tokens": 0, "block": 16}), Progress.first(4)
    many = full_density(chosen, Progress.first(50))
    density, note = density_or_note(chosen, run)
    assert density == many
    assert note == (
        f"a run of 4 steps cannot have the mean density {chosen.policy.mean_density:g} of preset "
        f"{name!r}: it has {mean:.2f}, and its sparse steps {many:.2f} as in a run of 50 steps"
    )
    engine = SparseAttention(chosen)
    for step in run.steps():
        q, k, v = torch.randn(3, 1, GRID.tokens, 2, 8)
        engine(q, k, v, Call(grid=GRID, layer=0, step=step.at, progress=step), dense)
    assert engine.stats.mean_density == pytest.approx(mean, abs=0.01)
    assert list(engine.stats.notes) == [note]


def test_few_steps_are_refused_where_they_must_not_cost_more():
    run = Progress.first(4)
    with pytest.raises(BadInputError, match=r"the least is 0\.28"):
        realised(PRESETS["fast"].override({"min_tokens": 0}), run)  # strict
    with pytest.raises(BadInputError, match=r"the least is 0\.28"):
        density_or_note(asking("fast", 0.25), run)
    with pytest.raises(BadInputError, match=r"run of 4 steps with warmup=0\.5"):  # nor do many
        density_or_note(PRESETS["fast"].override({"warmup": 0.5, "ramp_until": 0.5}), run)
    assert density_or_note(PRESETS["fast"], Progress.first(8))[1] is None


def test_a_run_of_one_dense_step_says_how_to_make_it_sparse():
    density, note = density_or_note(PRESETS["balanced"], Progress.first(1))
    assert density < 1
    assert note == (
        "preset 'balanced' leaves no step of a run of 1 step to be sparse: give warmup=0 and "
        "ramp_until=0, or more steps"
    )
    at_once = PRESETS["balanced"].override({"warmup": 0.0, "ramp_until": 0.0})
    of_blocks = 0.35 - 1 / 128  # beside exact rows
    assert density_or_note(at_once, Progress.first(1)) == (pytest.approx(of_blocks), None)


@pytest.mark.parametrize(
    ("steps", "changes", "least"),
    [
        (1, {}, "run of 1 step with warmup=0.05, ramp_until=0.3: the least is 1.00; give mean_d"),
        (2, {}, "the least is 0.52"),
        (20, {"warmup": 0.4, "ramp_until": 0.4}, "the least is 0.42"),
        (20, {"cooldown": 0.5}, "cooldown=0.5: the least is 0.6"),
        (20, {"dense_layers": 20}, "dense_layers=20: the least is 0.60"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_the_least_that_can(steps, changes, least):
    run = Progress.first(steps)
    with pytest.raises(BadInputError, match=re.escape(least)) as caught:
        full_density(asking(**changes), run, layers=40)
    possible = float(str(caught.value).partition("give mean_density=")[2].split()[0].strip(","))
    full_density(asking(mean=possible, **changes), run, layers=40)
    if possible < 1:
        with pytest.raises(BadInputError, match="cannot be reached"):
            full_density(asking(mean=possible - 0.02, **changes), run, layers=40)


@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_refused_at_the_first_call_of_a_run_though_that_is_dense(steps):
    engine = SparseAttention(asking())
    q, k, v = torch.randn(3, 1, GRID.tokens, 2, 8)
    call = Call(grid=GRID, layer=0, step=0, progress=Progress.first(steps))
    with pytest.raises(BadInputError, match=r"mean_density=0\.35 cannot be reached in a run of"):
        engine(q, k, v, call, dense)
    assert not engine.stats.calls


def test_a_sequence_that_runs_dense_anyway_is_not_refused():
    engine = SparseAttention(asking(min_tokens=5000))
    q, k, v = torch.randn(3, 1, GRID.tokens, 2, 8)
    engine(q, k, v, Call(grid=GRID, layer=0, step=0, progress=Progress.first(1)), dense)
    assert engine.stats.mean_density == 1


def test_the_two_densities_replace_each_other_and_are_refused_together():
    balanced = PRESETS["balanced"]
    fixed = balanced.override({"density": 0.3})
    assert (fixed.policy.density, fixed.policy.mean_density) == (0.3, None)
    again = fixed.override({"mean_density": "0.4"})
    assert (again.policy.density, again.policy.mean_density) == (None, 0.4)
    for name in ("balanced", "draft"):
        with pytest.raises(BadInputError, match=r"density=0\.3 .* mean_density=0.4 .*of the two"):
            PRESETS[name].override({"density": 0.3, "mean_density": 0.4})


@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan")])
def test_a_mean_density_is_a_share(value):
    with pytest.raises(BadInputError, match=r"mean_density must be in \(0, 1\]"):
        PRESETS["balanced"].override({"mean_density": value})


def test_budgets_take_a_density_not_a_mean(tmp_path):
    (tmp_path / "budgets.json").write_text('{"0": 0.5}')
    budgets = {"budgets": str(tmp_path / "budgets.json")}
    for more in ({}, {"mean_density": 0.4}):
        with pytest.raises(BadInputError, match="budgets are densities at full sparsity"):
            PRESETS["balanced"].override(budgets | more)
    assert PRESETS["balanced"].override(budgets | {"density": 0.3}).policy.density == 0.3


def test_a_static_mask_takes_a_mean_density_too():
    assert "decay" in asking("radial").idle()
    chosen = asking("radial", 0.75, block=16)  # its bands are coarse on so few frames
    assert realised(chosen, Progress.first(20)) == pytest.approx(0.75, abs=0.05)
    assert realised(asking("random", block=16), Progress.first(20)) == pytest.approx(0.35, abs=0.01)


def test_a_choice_of_orders_compares_at_the_density_that_runs():
    """As with the same density given itself."""
    run = Progress((0.5, 0.75, 1.0), 0)
    outs = []
    for given in ({"mean_density": 0.3}, {"density": 0.3}):
        torch.manual_seed(0)
        engine = SparseAttention(
            PRESETS["paro"].override({"min_tokens": 0, "block": 16} | given), strict=True
        )
        q, k, v = torch.randn(3, 1, GRID.tokens, 2, 8)
        outs.append(engine(q, k, v, Call(grid=GRID, layer=0, step=0, progress=run), dense))
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize(
    ("name", "changes", "ramp_until"),
    [
        ("balanced", {"mean_density": 0.25}, 0.2),
        ("balanced", {"mean_density": "0.5"}, 0.3),  # no ramp is longer
        ("semantic", {"mean_density": 0.08}, 0.05),  # a switch is the least
        ("balanced", {"mean_density": 0.25, "warmup": 0.1}, 0.15),
        ("balanced", {"mean_density": 0.25, "ramp_until": 0.3}, 0.3),  # what is told stays
        ("balanced", {"density": 0.25}, 0.3),
        ("adaspa", {"mean_density": 0.25}, 0.2),  # its paper's switch stays one
    ],
)
def test_a_mean_density_brings_the_ramp_that_it_pays_for(name, changes, ramp_until):
    assert PRESETS[name].override(changes).schedule.ramp_until == ramp_until


def test_what_was_told_before_stays():
    told = PRESETS["balanced"].override({"ramp_until": 0.3})
    assert told.override({"mean_density": 0.2}).schedule.ramp_until == 0.3


def test_the_rungs_are_one_dial():
    for method, rung in (("balanced", "fast"), ("semantic", "quality")):
        turned = PRESETS[method].override({"mean_density": PRESETS[rung].policy.mean_density})
        assert turned.policy == PRESETS[rung].policy
        assert turned.schedule == PRESETS[rung].schedule
