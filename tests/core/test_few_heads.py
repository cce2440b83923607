"""A few mean heads score for all, the strongest pair of two blocks, budgets from exact rows."""

import math

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.few_heads import by_few_heads, group_of_head
from vidsparse.policies.pooled import Pooled, SubBlock
from vidsparse.policies.sampled_p import SampledP, block_mass_of_rows
from vidsparse.policies.selectors import Selection
from vidsparse.policies.strided_peak import StridedPeak
from vidsparse.policies.value_aware import ValueAware
from vidsparse.presets import PRESETS

GRID = TokenGrid(2, 5, 7, suffix=3)  # 73 tokens: blocks of 16, the last of 9


def call(make_inputs, heads=5, grid=GRID):
    qkv = {name: torch.randn(2, heads, grid.tokens, 8) for name in "qkv"}
    return make_inputs(grid, 16, scale=0.4, heads=heads, **qkv)


def test_groups_are_of_neighbours_and_as_equal_as_they_can_be():
    assert group_of_head(5, 2) == [0, 0, 0, 1, 1]
    assert group_of_head(4, 4) == group_of_head(4, 9) == [0, 1, 2, 3]
    assert group_of_head(12, 4) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("estimator", [Pooled(), SubBlock(), StridedPeak(), ValueAware()], ids=repr)
def test_mean_heads_score_for_their_groups(make_inputs, estimator):
    inputs = call(make_inputs)
    policy = PRESETS["draft"].override({"estimator": estimator, "scoring_heads": 2}).policy
    scores = policy.estimate(inputs).scores
    groups = [(0, 3), (3, 5)]
    few = [
        torch.cat([x[:, a:b].mean(dim=1, keepdim=True) for a, b in groups], dim=1)
        for x in inputs.qkv
    ]
    by_hand = estimator.estimate(
        make_inputs(GRID, 16, scale=0.4, heads=2, q=few[0], k=few[1], v=few[2])
    ).scores
    torch.testing.assert_close(scores, by_hand[:, [0, 0, 0, 1, 1]])


def test_heads_that_are_alike_score_as_each_alone(make_inputs):
    one = call(make_inputs, heads=1)
    q, k, v = (x.expand(-1, 6, -1, -1) for x in one.qkv)
    alike = make_inputs(GRID, 16, scale=0.4, heads=6, q=q, k=k, v=v)
    few = by_few_heads(alike, 4)
    assert few.heads == few.qkv[0].shape[1] == 4
    expected = Pooled().estimate(one).scores
    torch.testing.assert_close(Pooled().estimate(few).scores, expected.expand(-1, 4, -1, -1))


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_a_peak_is_the_largest_share_of_sampled_pairs(make_inputs, stride):
    inputs = call(make_inputs, heads=2)
    q, k, _ = inputs.qkv
    share = (q[:, :, ::stride] @ k[:, :, ::stride].mT * 0.4).softmax(dim=-1)
    each = 16 // stride
    scores = StridedPeak(stride=stride).estimate(inputs).scores
    assert scores.shape == (2, 2, 5, 5)
    for i in range(5):
        for j in range(5):
            pairs = share[:, :, i * each : (i + 1) * each, j * each : (j + 1) * each]
            torch.testing.assert_close(scores[:, :, i, j].exp(), pairs.amax(dim=(2, 3)))


def select(inputs, p=None, density=None, least=1, way=1.0):
    policy = PRESETS["proxyattn"].policy
    count, index = SampledP(p=p, budget_rows=1000).select(
        Selection(
            estimate=policy.estimate(inputs), measure=policy.estimator.measure,
            always=inputs.blocks.always_kept, inputs=inputs, least=least, density=density, way=way,
        )
    )  # fmt: skip
    return count, index


@pytest.mark.parametrize(("p", "way"), [(0.3, 1.0), (0.6, 1.0), (0.6, 0.5), (1.0, 1.0)])
def test_a_head_keeps_as_many_blocks_as_hold_the_share_of_its_exact_rows(make_inputs, p, way):
    grid = TokenGrid(2, 8, 8)
    inputs = call(make_inputs, grid=grid)
    q, k, _ = inputs.qkv
    mass = (4 * q @ k.mT * 0.4).softmax(dim=-1).unflatten(-1, (8, 16)).sum(dim=-1).mean(dim=2)
    inputs = make_inputs(grid, 16, scale=1.6, heads=5, q=q, k=k, v=k)
    count, _ = select(inputs, p, way=way)
    share = 1 - way * (1 - p)
    for entry in range(2):
        for head in range(5):
            ranked = sorted(mass[entry, head].tolist(), reverse=True)
            needed = next((n for n in range(1, 9) if sum(ranked[:n]) >= share - 1e-6), 8)
            assert count[entry, head].tolist() == [needed] * 8


def test_rows_that_are_averaged_in_parts_weigh_alike(make_inputs, monkeypatch):
    inputs = call(make_inputs)
    whole = block_mass_of_rows(inputs, 23)
    monkeypatch.setattr("vidsparse.policies.sampled_p.ROWS", 5)
    torch.testing.assert_close(block_mass_of_rows(inputs, 23), whole)


def test_under_a_density_one_share_serves_the_layer(make_inputs):
    grid = TokenGrid(2, 16, 16)
    inputs = call(make_inputs, grid=grid)
    q, k, v = inputs.qkv
    sharp = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1])[:, None, None]
    inputs = make_inputs(grid, 16, scale=1.0, heads=5, q=q * sharp, k=k, v=v)
    count, _ = select(inputs, density=0.3)
    assert (count == count[..., :1]).all()
    assert float(count.float().mean()) == pytest.approx(0.3 * 32, abs=0.2)
    assert (count[:, 0, 0] < count[:, 4, 0]).all()


def test_an_equal_share_of_heads_that_are_alike_is_one_heads_rule(make_inputs):
    one = call(make_inputs, heads=1)
    q, k, v = (x.expand(-1, 4, -1, -1) for x in one.qkv)
    alike = make_inputs(GRID, 16, scale=0.4, heads=4, q=q, k=k, v=v)
    for one_head, each in zip(select(one, 0.5), select(alike, 0.5), strict=True):
        assert torch.equal(each, one_head.expand_as(each))


def test_a_query_that_is_no_number_scores_as_zero(make_inputs):
    inputs = call(make_inputs)
    policy = PRESETS["proxyattn"].policy
    inputs.q[0, 2, 8] = 0.0
    expected = policy.estimate(inputs).scores
    inputs.q[0, 2, 8] = math.nan
    torch.testing.assert_close(policy.estimate(inputs).scores, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("draft", {"scoring_heads": 0}, "scoring_heads must be at least 1, got 0"),
        ("radial", {"scoring_heads": 2}, "this estimator scores by neither"),
        ("lite", {"scoring_heads": 2}, "this estimator scores by neither"),
        ("semantic", {"scoring_heads": 2}, "here heads differ"),
        ("paro", {"scoring_heads": 2}, "here heads differ"),
        ("pbs", {"scoring_heads": 2}, "here heads differ"),
        ("vmoba", {"scoring_heads": 2}, "this selector goes by the tokens of each head"),
        ("proxyattn", {"stride": 3}, "stride must be 1, 2, 4, 8 or 16, got 3"),
        ("proxyattn", {"budget_rows": 0}, "budget_rows must be at least 1, got 0"),
        ("proxyattn", {"p": 1.5}, r"p must be in \(0, 1\], got 1.5"),
        ("proxyattn", {"p": "none"}, "selector=sampled_p needs p"),
    ],
)
def test_what_does_not_go_together_is_refused(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)
