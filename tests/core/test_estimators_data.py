"""Estimators that look at the data, against their formulas on small cases."""

import math

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.exact import Antidiagonal, Exact
from vidsparse.policies.pooled import Pooled, SubBlock
from vidsparse.policies.stripes import Stripes
from vidsparse.policies.value_aware import Mass, Routing, ValueAware

GRID = TokenGrid(1, 5, 9)  # 45 tokens: blocks of 16, 16 and 13


@pytest.fixture
def inputs(make_inputs):
    q, k, v = (torch.randn(2, 3, GRID.tokens, 8) for _ in range(3))
    return make_inputs(GRID, 16, q=q, k=k, v=v, scale=0.5, heads=3)


def block_mass(inputs):
    """Mean attention of blocks to blocks, from exact scores."""
    q, k, _ = inputs.qkv
    share = (q @ k.mT * inputs.scale).softmax(dim=-1)
    columns = torch.stack([part.sum(dim=-1) for part in share.split(16, dim=-1)], dim=-1)
    return torch.stack([part.mean(dim=2) for part in columns.split(16, dim=2)], dim=2)


def test_exact_mass_is_the_mean_attention_of_blocks(inputs):
    scores = Exact().estimate(inputs).scores
    torch.testing.assert_close(scores.exp(), block_mass(inputs))


def test_sampled_rows_are_near_the_exact_mass_and_drawn_anew_at_each_step(make_inputs, inputs):
    import dataclasses

    exact = block_mass(inputs)
    few = Exact(rows=8).estimate(inputs).scores.exp()
    assert float((few.sum(dim=-1) - 1).abs().max()) < 1e-5
    assert float((few - exact).abs().max()) < 0.25
    many = Exact(rows=400).estimate(inputs).scores.exp()
    assert float((many - exact).abs().max()) < 0.03
    assert torch.equal(few, Exact(rows=8).estimate(inputs).scores.exp())
    later = dataclasses.replace(inputs, step=1)
    assert not torch.equal(few, Exact(rows=8).estimate(later).scores.exp())


def test_one_part_a_block_is_the_draft(inputs):
    torch.testing.assert_close(
        SubBlock(parts=1).estimate(inputs).scores, Pooled().estimate(inputs).scores
    )


def test_as_many_parts_as_tokens_are_the_log_of_the_exact_sums(inputs):
    q, k, _ = inputs.qkv
    sums = (q @ k.mT * inputs.scale).exp()
    columns = torch.stack([part.sum(dim=-1) for part in sums.split(16, dim=-1)], dim=-1)
    truth = torch.stack([part.mean(dim=2) for part in columns.split(16, dim=2)], dim=2)
    scores = SubBlock(parts=16).estimate(inputs).scores
    torch.testing.assert_close(scores, truth.log(), atol=1e-4, rtol=1e-4)


def test_value_aware_scores_are_mass_times_the_distance_of_values(inputs):
    v = inputs.qkv[2]
    value = torch.stack([part.mean(dim=2) for part in v.split(16, dim=2)], dim=2)
    mass = block_mass(inputs)
    out = mass @ value
    truth = mass * (out[:, :, :, None] - value[:, :, None]).norm(dim=-1)
    scores = ValueAware(mass=Mass.ROWS, rows=0).estimate(inputs).scores
    torch.testing.assert_close(scores, truth, atol=1e-5, rtol=1e-4)


def test_equal_values_cost_nothing_to_skip(make_inputs):
    q, k = torch.randn(1, 1, 45, 8), torch.randn(1, 1, 45, 8)
    inputs = make_inputs(GRID, 16, q=q, k=k, v=torch.ones(1, 1, 45, 8))
    assert float(ValueAware().estimate(inputs).scores.abs().max()) < 1e-6


def test_routing_error_is_the_formula_of_the_paper(inputs):
    q, k, v = (x[0, 1].double() for x in inputs.qkv)
    scores = Routing().estimate(inputs).scores[0, 1].double()
    for i, query in enumerate(q.split(16)):
        mean = query.mean(dim=0)
        row = []
        for key, value in zip(k.split(16), v.split(16), strict=True):
            stand_in = (mean @ key.mean(dim=0) * inputs.scale).exp() * value.mean(dim=0)
            exact = (key @ mean * inputs.scale).exp()[:, None] * value
            row.append((stand_in - exact).square().sum())
        total = (k @ mean * inputs.scale).exp().sum()
        truth = torch.stack(row).sqrt() / total
        torch.testing.assert_close(scores[i], truth, atol=0, rtol=1e-3)


def test_a_block_of_equal_tokens_has_no_routing_error(make_inputs):
    q, k, v = (torch.randn(1, 1, 45, 8) for _ in range(3))
    k[:, :, 16:32], v[:, :, 16:32] = k[:, :, 16:17], v[:, :, 16:17]
    scores = Routing().estimate(make_inputs(GRID, 16, q=q, k=k, v=v)).scores
    assert float(scores[..., 1].abs().max()) < 1e-5 * float(scores.max())


def test_stripes_are_the_same_in_every_row(inputs):
    scores = Stripes().estimate(inputs).scores
    assert torch.equal(scores, scores[:, :, :1].expand_as(scores))
    torch.testing.assert_close(scores[0, 0, 0].sum(), torch.tensor(1.0))


def test_antidiagonal_scores_are_logs_of_shares(inputs):
    share = Antidiagonal(stride=4).estimate(inputs).scores.exp()
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(2, 3, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubBlock(parts=3), "parts must be 1, 2, 4, 8 or 16, got 3"),
        (lambda: ValueAware(parts=32), "parts must be 1, 2, 4, 8 or 16, got 32"),
        (lambda: ValueAware(rows=-1), "rows must be at least 0, got -1"),
        (lambda: Exact(rows=-2), "rows must be at least 0, got -2"),
        (lambda: Antidiagonal(stride=5), "stride must be 2, 4, 8 or 16, got 5"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(BadInputError, match=message):
        make()


def test_the_ln_of_the_size_counts_in_pooled_scores(make_inputs):
    inputs = make_inputs(GRID, 16, q=torch.zeros(1, 1, 45, 8), k=torch.randn(1, 1, 45, 8))
    scores = Pooled().estimate(inputs).scores[0, 0]
    assert scores[0].tolist() == pytest.approx([math.log(16), math.log(16), math.log(13)])
