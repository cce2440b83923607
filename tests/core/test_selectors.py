"""Selectors on maps small enough to work by hand."""

import pytest
import torch

from vidsparse.policies import selectors

DIAGONAL = torch.eye(3).bool()
SIZES = torch.tensor([2.0, 2.0, 1.0])  # pairs: 4 4 2 / 4 4 2 / 2 2 1, 25 in all, 9 on the diagonal


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
def test_budget_buys_the_best_blocks_of_the_whole_map(density, blocks):
    assert kept(selectors.budget(MAP, DIAGONAL, SIZES, density)) == blocks


def test_budget_drops_a_tie_it_cannot_pay_for_whole():
    tied = scores([0, 5, 1], [1, 0, 4], [4, 1, 0])
    assert kept(selectors.budget(tied, DIAGONAL, SIZES, 0.60)) == {(0, 1)}
    assert kept(selectors.budget(tied, DIAGONAL, SIZES, 0.68)) == {(0, 1), (1, 2), (2, 0)}


@pytest.mark.parametrize("density", [0.01, 0.36, 0.52])
def test_budget_keeps_the_best_tie_even_where_it_costs_more(density):
    tied = scores([0, 5, 1], [5, 0, 1], [1, 1, 0])
    assert kept(selectors.budget(tied, DIAGONAL, SIZES, density)) == {(0, 1), (1, 0)}


def test_budget_is_spent_in_each_head_by_itself():
    both = torch.cat([MAP, -MAP], dim=1)
    mask = selectors.budget(both, DIAGONAL, SIZES, 0.6)
    assert kept(mask[:, :1]) == {(0, 1), (2, 0)}
    assert kept(mask[:, 1:]) == {(0, 2), (2, 1)}


def test_budget_with_everything_always_kept_keeps_everything():
    assert selectors.budget(MAP, torch.ones(3, 3).bool(), SIZES, 0.1).all()


@pytest.mark.parametrize(("density", "count"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.9, 7), (1.0, 8)])
def test_top_k_keeps_equally_many_in_every_row(density, count):
    mask = selectors.top_k(torch.randn(2, 3, 8, 8), torch.eye(8).bool(), density)
    assert (mask.sum(dim=-1) == count).all()
    assert mask.diagonal(dim1=-2, dim2=-1).all()


def test_top_k_keeps_the_best_after_the_always_kept():
    mask = selectors.top_k(MAP, DIAGONAL, 0.67)
    assert kept(mask) == {(0, 1), (1, 2), (2, 0)}


def test_top_k_rows_that_are_always_kept_stay_whole():
    always = DIAGONAL.clone()
    always[2] = True
    mask = selectors.top_k(MAP, always, 0.34)
    assert mask[0, 0].tolist() == always.tolist()


def test_threshold_keeps_the_score_that_equals_it():
    assert kept(selectors.threshold(MAP, DIAGONAL, 3.0)) == {(0, 1), (1, 2), (2, 0)}
