"""Columns and diagonals by the exact attention of a few rows."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.orders import Axes
from vidsparse.policies.vertical_slash import VerticalSlash, masses
from vidsparse.policies.window import Window
from vidsparse.presets import PRESETS

GRID = TokenGrid(2, 8, 8)  # eight blocks of 16


def call(make_inputs, grid=GRID, scale=0.4):
    qkv = {name: torch.randn(1, 2, grid.tokens, 8) for name in "qkv"}
    return make_inputs(grid, 16, scale=scale, heads=2, **qkv)


def test_masses_are_the_sums_of_columns_and_of_diagonals(make_inputs):
    inputs = call(make_inputs, TokenGrid(1, 5, 7, 3))  # 38 tokens, the last block of 6
    rows = torch.tensor([0, 17, 18, 37])
    vertical, slash = masses(inputs, rows)
    q, k, _ = inputs.qkv
    share = (q[:, :, rows] @ k.mT * 0.4).softmax(dim=-1)
    columns, diagonals = torch.zeros(1, 2, 3), torch.zeros(1, 2, 5)
    for r, row in enumerate(rows.tolist()):
        for key in range(38):
            columns[..., key // 16] += share[..., r, key]
            diagonals[..., key // 16 - row // 16 + 2] += share[..., r, key]
    torch.testing.assert_close(vertical, columns)
    torch.testing.assert_close(slash, diagonals)


@pytest.mark.parametrize(("columns", "diagonals"), [(1, 1), (33, 16), (48, 70)])
def test_the_mask_holds_the_heaviest_columns_and_diagonals(make_inputs, columns, diagonals):
    inputs = call(make_inputs, scale=2.0)
    estimator = VerticalSlash(columns=columns, diagonals=diagonals, pattern_rows=1000)
    policy = PRESETS["minference"].override({"estimator": estimator}).policy
    vertical, slash = masses(inputs, torch.arange(128))
    keep = policy.plan(policy.estimate(inputs), inputs).to_block_mask()[0]
    for head in range(2):
        wide, deep = -(-columns // 16), -(-diagonals // 16)
        ranked = sorted(range(1, 8), key=lambda j: -float(vertical[0, head, j]))
        of_columns = {0, *ranked[: wide - 1]}
        ranked = sorted((d for d in range(-7, 8) if d), key=lambda d: -float(slash[0, head, d + 7]))
        of_diagonals = {0, *ranked[: deep - 1]}
        by_hand = [[j in of_columns or j - i in of_diagonals for j in range(8)] for i in range(8)]
        assert keep[head].tolist() == by_hand


def test_on_the_way_to_full_sparsity_there_are_more_of_both(make_inputs):
    inputs = call(make_inputs)
    changes = {"columns": 16, "diagonals": 16, "pattern_rows": 1000}
    policies = [
        PRESETS["minference"].override(changes | more).policy
        for more in ({}, {"columns": 64, "diagonals": 64})
    ]
    early, wide = (
        policy.plan(policy.estimate(inputs), inputs, way=way).to_block_mask()
        for policy, way in zip(policies, (0.25, 1.0), strict=True)
    )
    assert torch.equal(early, wide)


def test_in_an_order_of_residues_columns_are_a_grid(make_inputs):
    """Keys at one place of each of 16 frames are 16 tokens apart by a frame; there, one block."""
    grid = TokenGrid(16, 3, 4)  # a frame of 12: stride 12
    inputs = call(make_inputs, grid)
    q, k, v = inputs.qkv
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0], k[:, :, 5::12, 0] = 1.0, 30.0
    inputs = make_inputs(grid, 16, scale=1.0, heads=2, q=q, k=k, v=v)
    arranged = Axes(axes="hwf").arrange(inputs).inputs
    estimator = VerticalSlash(columns=32, diagonals=16)
    policy = PRESETS["minference"].override({"estimator": estimator, "block": 16}).policy
    keep = policy.plan(policy.estimate(arranged), arranged).to_block_mask()[0, 0]
    assert keep.tolist() == [[j in (0, 5) or i == j for j in range(12)] for i in range(12)]


def test_a_head_of_mminference_takes_the_pattern_that_errs_least():
    candidates = PRESETS["mminference"].policy.candidates
    assert [type(each.estimator) for each in candidates] == [VerticalSlash] * 3 + [Window]
    assert [str(each.order) for each in candidates[1:3]] == ["Axes(axes='hwf')", "Axes(axes='wfh')"]


@pytest.mark.parametrize("name", ["columns", "diagonals", "pattern_rows"])
def test_none_is_refused(name):
    with pytest.raises(BadInputError, match=f"{name} must be at least 1, got 0"):
        PRESETS["minference"].override({name: 0})
