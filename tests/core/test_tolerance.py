"""Auto and choices: the error on sampled rows is the true one, and it is what decides."""

import dataclasses
from typing import Any

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import dense_plan
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.choice import CHOICE, Alternative, Alternatives
from vidsparse.policies.compensation import with_centroids
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.geometric import Axis, Band
from vidsparse.policies.orders import Axes, Hilbert, Raster, Tile, coordinates
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled
from vidsparse.policies.random import Random
from vidsparse.policies.sampled import Samples
from vidsparse.policies.selectors import Threshold
from vidsparse.policies.semantic import Semantic
from vidsparse.policies.tolerance import Tolerance
from vidsparse.policies.value_aware import Mass, ValueAware
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(5, 7, 9, 4, 3)


def smooth(grid=GRID, heads=2, seed=0):
    """Tokens whose keys and queries change slowly over the grid, as video's do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, heads, grid.frames, grid.height, grid.width, 8, generator=generator)
    for axis in (2, 3, 4):
        x = x + x.roll(1, axis) + x.roll(-1, axis)
    video = x.flatten(2, 4) / x.std()
    before, after = (torch.randn(1, heads, n, 8) for n in (grid.prefix, grid.suffix))
    return torch.cat([before, video, after], dim=2)


def attend(inputs, plan) -> Any:
    q, k, v = inputs.qkv
    return reference_attention(q, k, v, plan, scale=inputs.scale)


def make(grid=GRID, block=16, **rest):
    q, k, v = smooth(grid), smooth(grid, seed=1), smooth(grid, seed=2)
    blocks = Blocks(grid, block, torch.device("cpu"))
    return Inputs(blocks=blocks, q=2 * q, k=2 * q + k, v=v, scale=8**-0.5, heads=2, **rest)


@pytest.mark.parametrize("centroids", [False, True])
@pytest.mark.parametrize(
    "order",
    [
        Raster(),
        Tile(tile_height=3, tile_width=4),
        Hilbert(),
        Semantic(q_clusters=12, kv_clusters=17),
    ],
    ids=lambda order: type(order).__name__,
)
def test_the_error_of_sampled_rows_is_that_of_the_plan(order, centroids):
    inputs = make()
    samples = Samples.draw(inputs, GRID.tokens)  # every row
    assert samples.rows.unique().numel() == GRID.tokens
    placed = order.arrange(inputs)
    arranged = placed.inputs
    policy = Policy(order=order, estimator=Pooled(), density=0.4, block=16)
    plan = policy.plan(policy.estimator.estimate(arranged), arranged)
    error = samples.under(placed, centroids=centroids).error(plan.to_block_mask())
    exact, _ = attend(arranged, dense_plan(plan))
    sparse, _ = attend(arranged, with_centroids(plan, arranged) if centroids else plan)
    truth = (sparse - exact).square().sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(error, truth, atol=1e-6, rtol=1e-3)


def relative_error(inputs, plan):
    exact = (inputs.q @ inputs.k.mT * inputs.scale).softmax(dim=-1) @ inputs.v
    sparse, _ = attend(inputs, with_centroids(plan, inputs))
    return float((sparse - exact).norm() / exact.norm())


def no_dense(q, k, v):
    raise AssertionError("nothing here is dense")


def no_static(candidate, inputs):
    raise AssertionError("nothing here is static")


def auto(**changes):
    return dataclasses.replace(PRESETS["auto"].policy, block=16, **changes)


def plan_within(policy, inputs, tolerance, **changes):
    selector = dataclasses.replace(policy.selector, tolerance=tolerance, **changes)
    return selector.measured(policy, inputs, 1.0, no_static)


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.3])
def test_the_plan_meets_its_tolerance_and_is_not_much_dearer_than_it_must_be(tolerance):
    inputs = make(TokenGrid(6, 12, 12))
    policy = auto()
    arranged, plan = plan_within(policy, inputs, tolerance, sampled_rows=10_000)
    assert relative_error(arranged.inputs, plan) <= tolerance * 1.01
    cheaper = policy.plan(
        policy.estimator.estimate(arranged.inputs), arranged.inputs, density=0.75 * plan.density
    )
    assert relative_error(arranged.inputs, cheaper) > tolerance


def low_bit_error(inputs, plan):
    """Relative error of a plan in eight bits, against exact attention in floats."""
    q, k, v = inputs.qkv
    exact, _ = attend(inputs, dense_plan(plan))
    out, _ = low_bit_attention(q, k, v, with_centroids(plan, inputs), scale=inputs.scale)
    return float((out - exact).norm() / exact.norm())


def test_what_eight_bits_round_leaves_less_for_what_is_skipped():
    policy, grid = auto(), TokenGrid(6, 12, 12)
    floats, eight = make(grid), make(grid, eight_bits=True)
    arranged, plan = plan_within(policy, floats, 0.1)
    tolerance = 1.5 * low_bit_error(arranged.inputs, dense_plan(plan))
    arranged, plan = plan_within(policy, floats, tolerance, sampled_rows=10_000)
    assert low_bit_error(arranged.inputs, plan) > tolerance
    arranged, dearer = plan_within(policy, eight, tolerance, sampled_rows=10_000)
    assert low_bit_error(arranged.inputs, dearer) <= 1.02 * tolerance
    assert dearer.density > plan.density
    _, everything = plan_within(policy, eight, tolerance / 4)
    assert everything.density == 1


def test_more_tolerance_is_less_density():
    inputs = make(TokenGrid(6, 12, 12))
    policy = auto()
    densities = [
        plan_within(policy, inputs, tolerance)[1].density for tolerance in (0.01, 0.05, 0.2, 0.6)
    ]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > 2 * densities[-1]


def test_each_entry_of_a_batch_has_a_density_of_its_own():
    easy, hard = make(TokenGrid(4, 8, 8)), make(TokenGrid(4, 8, 8))
    hard = dataclasses.replace(hard, q=torch.randn(1, 2, 256, 8), v=torch.randn(1, 2, 256, 8))
    both = dataclasses.replace(
        easy,
        **{name: torch.cat([getattr(easy, name), getattr(hard, name)]) for name in "qkv"},
    )
    density = plan_within(auto(), both, 0.2)[1].head_density().mean(dim=-1)
    assert float(density[0]) < float(density[1])


def test_every_head_takes_the_order_it_errs_least_in():
    grid = TokenGrid(8, 4, 8)
    frame, place = torch.eye(8), torch.eye(32)[:, :8] * 0
    place = torch.randn(32, 8)
    in_time = frame[torch.arange(256) // 32]  # tokens of one frame look alike
    in_space = place[torch.arange(256) % 32]  # tokens of one place do
    x = 6 * torch.stack([in_time, in_space])[None]
    inputs = Inputs(
        blocks=Blocks(grid, 16, torch.device("cpu")),
        q=x, k=x, v=torch.randn(1, 2, 256, 8), scale=0.5, heads=2,
    )  # fmt: skip
    policy = dataclasses.replace(PRESETS["svg"].policy, block=16)
    Planner(policy).work(inputs, 1.0)
    choice: Any = inputs.state.get(CHOICE)
    assert choice.tolist() == [[0, 1]]


def test_heads_of_sliding_tiles_take_the_slab_in_which_tokens_are_alike():
    grid = TokenGrid(8, 8, 8)
    place = coordinates(grid)
    x = 6 * torch.stack([torch.eye(8)[place[:, axis]] for axis in range(3)])[None]
    inputs = Inputs(
        blocks=Blocks(grid, 16, torch.device("cpu")),
        q=x, k=x, v=torch.randn(1, 3, 512, 8), scale=0.5, heads=3, density=0.5,
    )  # fmt: skip
    small = {"block": 16, "density": 0.5} | {f"unit_{axis}": 2 for axis in Axis}
    small |= {f"tile_{axis}": 2 for axis in Axis}
    Planner(PRESETS["sta"].override(small).policy).work(inputs, 1.0)
    choice: Any = inputs.state.get(CHOICE)
    assert choice.tolist() == [[1, 2, 3]]  # frames, height, width; the window is the first


@pytest.mark.parametrize(("every", "times"), [(0, 1), (1, 6), (3, 2)])
def test_heads_choose_anew_when_it_is_due(every, times, monkeypatch):
    drawn = []
    draw = Samples.draw
    monkeypatch.setattr(Samples, "draw", lambda *args: drawn.append(1) or draw(*args))
    preset = PRESETS["svg"].override(
        {"block": 16, "min_tokens": 0, "dense_layers": 0, "choose_every": every}
    )
    engine = SparseAttention(preset)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    for step in range(6):
        call = Call(grid=GRID, layer=0, step=step, progress=Progress.alone(0.5))
        engine(q, k, v, call, lambda *x: x[0])
    assert len(drawn) == times


def test_a_per_head_order_is_undone_in_the_output():
    alternatives = Alternatives(candidates=(Alternative(order=Axes(axes="hwf"), estimator=Band()),))
    policy = Policy(
        estimator=Band(),
        selector=Threshold(),
        density=1 - 1e-12,
        alternatives=alternatives,
        block=16,
    )
    preset = dataclasses.replace(PRESETS["draft"], policy=policy, min_tokens=0)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 8) for _ in range(3))
    out = SparseAttention(preset)(
        q, k, v, Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.5)), no_dense
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\], got 0"),
        ({"tolerance": None}, "selector=tolerance needs tolerance, the relative error to allow"),
        ({"sampled_rows": 0}, "sampled_rows must be at least 1, got 0"),
        ({"estimator": Random()}, "only ranks blocks within a head"),
        ({"density": 0.3}, "this preset has no density: change its tolerance"),
        (
            {
                "alternatives": Alternatives(
                    candidates=(Alternative(order=Semantic(), estimator=ValueAware()),)
                ),
            },
            "choose among static orders",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(parameters, message):
    own: dict[str, Any] = {"tolerance": 0.1} | {
        name: parameters[name] for name in ("tolerance", "sampled_rows") if name in parameters
    }
    rest = {name: value for name, value in parameters.items() if name not in own}
    with pytest.raises(BadInputError, match=message):
        Policy(**{"estimator": ValueAware(mass=Mass.ROWS), "selector": Tolerance(**own)} | rest)


def planned_steps(monkeypatch, tensors_of_step, steps=9, **changes):
    """At which steps the layer made a plan, in place of keeping its old one."""
    made = []
    plan = Tolerance.measured

    def noted(self, policy, inputs, way, static):
        made.append(inputs.step)
        return plan(self, policy, inputs, way, static)

    monkeypatch.setattr(Tolerance, "measured", noted)
    settings = {"q_clusters": 12, "kv_clusters": 24, "min_tokens": 0, "tolerance": 0.2}
    engine = SparseAttention(PRESETS["auto"].override(settings | changes))
    for step in range(steps):
        for branch in ("cond", "uncond"):
            call = Call(grid=GRID, layer=0, step=step, progress=Progress.alone(0.5), branch=branch)
            q, k, v = tensors_of_step(step)
            engine(q, k, v, call, no_dense)
    return made


def constant(seed=0):
    tensors = [x.transpose(1, 2) for x in (2 * smooth(seed=seed), 2 * smooth(seed=seed), smooth())]
    return lambda step: tensors


def test_a_plan_is_kept_while_its_error_stays_low_and_both_branches_use_it(monkeypatch):
    assert planned_steps(monkeypatch, constant(), tolerance=0.3, replan=4) == [0, 4, 8]


def test_a_plan_that_errs_too_much_on_new_rows_is_made_anew_a_step_later(monkeypatch):
    before, after = constant(), constant(seed=7)

    def changing(step):
        return (before if step < 3 else after)(step)

    made = planned_steps(monkeypatch, changing, tolerance=0.05, replan=20, first_iterations=20)
    assert made[0] == 0
    assert 4 in made  # seen at step 3, whose plan was of other tokens


def test_on_the_ramp_no_plan_is_kept():
    engine = SparseAttention(PRESETS["draft"].override({"replan": 4, "min_tokens": 0, "block": 16}))
    works: list[Any] = []
    engine.observers.append(lambda call, work, *tensors: works.append(work.plan.density))
    q, k, v = constant()(0)
    for step, sigma in enumerate((0.92, 0.88, 0.84, 0.7, 0.6)):
        call = Call(grid=GRID, layer=0, step=step, progress=Progress.alone(1 - sigma))
        engine(q, k, v, call, no_dense)
    assert works[0] > works[1] > works[2] > works[3] == works[4]
