"""Selectors on maps small enough to work by hand."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.validate import validated
from vidsparse.policies.choice import Alternatives
from vidsparse.policies.estimator import Estimate
from vidsparse.policies.exact import Exact
from vidsparse.policies.policy import Anchor, Policy
from vidsparse.policies.random import Random
from vidsparse.policies.scope import Scope
from vidsparse.policies.selectors import Budget, MassOf, TopP, best_of_map, mass_left
from vidsparse.policies.value_aware import ValueAware
from vidsparse.presets import PRESETS

DIAGONAL = torch.eye(3).bool()
SIZES = torch.tensor([2.0, 2.0, 1.0])  # pairs: 4 4 2 / 4 4 2 / 2 2 1, 25 in all, 9 on the diagonal
GRID = TokenGrid(1, 5, 16)  # 80 tokens: five blocks of 16


def scores(*rows):
    return torch.tensor(rows)[None, None].float()


def kept(mask):
    """Off-diagonal blocks that are kept."""
    assert mask[0, 0].diagonal().all()
    return {(i, j) for i, j in mask[0, 0].nonzero().tolist() if i != j}


MAP = scores([0, 5, 1], [2, 0, 3], [4, 1, 0])


@pytest.mark.parametrize(
    ("density", "blocks"),
    [
        (0.60, {(0, 1), (2, 0)}),  # 9 + 4 + 2 = 15 of 25
        (0.59, {(0, 1)}),
        (0.68, {(0, 1), (2, 0), (1, 2)}),
        (0.84, {(0, 1), (2, 0), (1, 2), (1, 0)}),
        (1.0, {(0, 1), (2, 0), (1, 2), (1, 0), (0, 2), (2, 1)}),
    ],
)
def test_the_best_of_a_map_are_bought_under_a_density(density, blocks):
    assert kept(best_of_map(MAP, DIAGONAL, SIZES, density)) == blocks


def test_a_tie_that_cannot_be_paid_whole_is_dropped():
    tied = scores([0, 5, 1], [1, 0, 4], [4, 1, 0])
    assert kept(best_of_map(tied, DIAGONAL, SIZES, 0.60)) == {(0, 1)}
    assert kept(best_of_map(tied, DIAGONAL, SIZES, 0.68)) == {(0, 1), (1, 2), (2, 0)}


@pytest.mark.parametrize("density", [0.01, 0.36, 0.52])
def test_the_best_tie_is_kept_even_where_it_costs_more(density):
    tied = scores([0, 5, 1], [5, 0, 1], [1, 1, 0])
    assert kept(best_of_map(tied, DIAGONAL, SIZES, density)) == {(0, 1), (1, 0)}


def test_each_head_has_a_map_of_its_own():
    both = torch.cat([MAP, -MAP], dim=1)
    mask = best_of_map(both, DIAGONAL, SIZES, 0.6)
    assert kept(mask[:, :1]) == {(0, 1), (2, 0)}
    assert kept(mask[:, 1:]) == {(0, 2), (2, 1)}


def test_mass_left_is_what_a_block_and_worse_ones_hold():
    mass = scores([1, 5, 4])
    torch.testing.assert_close(mass_left(mass, MassOf.ROW), scores([0.1, 1.0, 0.5]))
    rows = scores([1, 5], [4, 0])
    by_head = mass_left(rows, MassOf.HEAD)
    torch.testing.assert_close(by_head, scores([0.1, 1.0], [0.5, 0.0]))
    sharp = scores([1, 1e-9, 1e-12, 1e-10])
    assert mass_left(sharp, MassOf.ROW)[0, 0, 0].argsort().tolist() == [2, 3, 1, 0]


def plan(policy, values, make_inputs, grid=GRID, **keywords):
    inputs = make_inputs(grid, 16, q=torch.zeros(1, values.shape[1], grid.tokens, 8))
    return validated(policy.plan(Estimate(scores=values), inputs, **keywords))


@pytest.mark.parametrize(("density", "count"), [(0.01, 1), (0.4, 2), (0.6, 3), (1.0, 5)])
def test_top_k_keeps_equally_many_in_every_row(make_inputs, density, count):
    policy = Policy(estimator=Random(), density=density, block=16)
    made = plan(policy, torch.randn(1, 2, 5, 5), make_inputs)
    assert (made.kv_count == count).all()
    assert made.to_block_mask().diagonal(dim1=-2, dim2=-1).all()


def test_a_floor_lifts_every_row(make_inputs):
    policy = Policy(estimator=ValueAware(), selector=Budget(), density=0.3, floor=0.4, block=16)
    made = plan(policy, torch.rand(1, 2, 5, 5), make_inputs)
    assert int(made.kv_count.min()) == 2


def test_top_p_keeps_the_fewest_blocks_that_hold_the_share(make_inputs):
    share = torch.tensor([0.5, 0.26, 0.14, 0.06, 0.04])
    values = torch.stack([share.roll(i) for i in range(5)]).log()[None, None]
    policy = Policy(estimator=Exact(), selector=TopP(p=0.75), block=16)
    mask = plan(policy, values, make_inputs).to_block_mask()[0, 0]
    assert [set(row.nonzero()[:, 0].tolist()) for row in mask] == [
        {i, (i + 1) % 5} for i in range(5)
    ]
    more = plan(policy, values, make_inputs, way=0.8).to_block_mask()
    assert (more.sum(dim=-1) == 3).all()


def test_top_p_under_a_density_shares_one_p_among_all_rows(make_inputs):
    sharp, flat = torch.tensor([0.9, 0.04, 0.03, 0.02, 0.01]), torch.full((5,), 0.2)
    values = torch.stack([sharp.roll(i) if i < 3 else flat for i in range(5)]).log()[None, None]
    policy = Policy(estimator=Exact(), selector=TopP(p=0.5), block=16)
    made = plan(policy, values, make_inputs, density=0.5)
    assert made.density == pytest.approx(0.5, abs=0.07)
    counts = made.kv_count[0, 0]
    assert int(counts[3:].min()) > int(counts[:3].max())


def test_a_threshold_over_a_head_spends_where_the_mass_is(make_inputs):
    values = torch.full((1, 1, 5, 5), 0.2)  # row 0 looks at one block, the others at all
    values[0, 0, 0] = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01])
    policy = Policy(
        estimator=Exact(),
        selector=TopP(p=0.5, mass_of=MassOf.HEAD, scope=Scope.HEAD),
        block=16,
    )
    counts = plan(policy, values.log(), make_inputs).kv_count[0, 0]
    assert int(counts[0]) == 1
    assert int(counts[1:].sum()) >= 8  # 0.96 + 8 x 0.2 is half of the mass of five rows


def test_a_budget_is_shared_among_heads_by_need_or_not(make_inputs):
    values = torch.rand(1, 2, 5, 5)
    values[:, 1] += 10
    policy = Policy(estimator=ValueAware(), selector=Budget(), density=0.6, block=16)
    shared = plan(policy, values, make_inputs).head_density()[0]
    assert float(shared[1]) == pytest.approx(1.0)
    alone = Policy(estimator=ValueAware(), selector=Budget(scope=Scope.HEAD), density=0.6, block=16)
    even = plan(alone, values, make_inputs).head_density()[0]
    assert even.tolist() == pytest.approx([0.6, 0.6], abs=0.04)


def test_a_density_of_each_head_is_spent_in_that_head(make_inputs):
    policy = Policy(estimator=ValueAware(), selector=Budget(), density=0.6, block=16)
    each = torch.tensor([[0.4, 0.8]])
    made = plan(policy, torch.rand(1, 2, 5, 5), make_inputs, density=each)
    assert made.head_density()[0].tolist() == pytest.approx([0.4, 0.8], abs=0.04)


@pytest.mark.parametrize(
    ("anchor", "rows", "columns"), [("keys", 0, 1), ("queries", 1, 0), ("both", 1, 1)]
)
def test_an_anchor_keeps_the_first_frame(make_inputs, anchor, rows, columns):
    grid = TokenGrid(5, 4, 4)  # one block a frame
    policy = Policy(estimator=Random(), density=0.2, anchor=Anchor(anchor), block=16)
    mask = plan(policy, torch.randn(1, 1, 5, 5), make_inputs, grid).to_block_mask()[0, 0]
    assert bool(mask[0].all()) == bool(rows)
    assert bool(mask[:, 0].all()) == bool(columns)


def test_rotation_shows_every_block_once_in_a_round(make_inputs):
    policy = Policy(estimator=Random(), density=0.01, rotate=0.25, block=16)
    seen = torch.zeros(5, 5, dtype=torch.int64)
    for step in range(4):
        inputs = make_inputs(GRID, 16, step=step)
        seen += policy.always(inputs) & ~torch.eye(5).bool()
    assert torch.equal(seen, (~torch.eye(5).bool()).long())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"estimator": Random(), "selector": Budget(), "density": 0.5}, "only ranks blocks within"),
        ({"estimator": Exact(), "selector": TopP()}, "needs p, .* or a density"),
        ({"estimator": Exact()}, "only ranks blocks: give it a density"),
        ({"estimator": Exact(), "density": 0.5, "floor": 2}, r"floor must be in \[0, 1\], got 2"),
        ({"estimator": Exact(), "density": 0.5, "rotate": 1}, r"rotate must be in \[0, 1\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parameters, message):
    with pytest.raises(BadInputError, match=message):
        Policy(**parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alternatives(candidates=(), choose_every=-1), "choose_every must be at least 0"),
        (lambda: Alternatives(candidates=(), sampled_rows=0), "sampled_rows must be at least 1"),
        (lambda: TopP(p=0.0), r"p must be in \(0, 1\], got 0"),
    ],
)
def test_a_number_that_a_part_cannot_take_is_refused(make, message):
    with pytest.raises(BadInputError, match=message):
        make()


def test_a_density_is_shared_in_a_head_or_a_layer_and_in_nothing_else():
    for name, value, known in (
        ("scope", "row", "head or layer"),
        ("mass_of", "layer", "row or head"),
    ):
        with pytest.raises(BadInputError, match=f"{name} takes {known}, got '{value}'"):
            PRESETS["svg2"].override({"density": 0.3, name: value})
