"""SpargeAttn's judge of blocks, Sol-Attn's threshold and the scores of parts of blocks."""

import math

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.planner import Planner
from vidsparse.policies.judge import similarity, unlike
from vidsparse.presets import PRESETS

GRID = TokenGrid(2, 5, 7, suffix=3)  # 73 tokens: blocks of 16, the last of 9


def call(make_inputs, grid=GRID, **changed):
    qkv = {name: torch.randn(1, 2, grid.tokens, 8) for name in "qkv"} | changed
    return make_inputs(grid, 16, scale=0.4, heads=2, **qkv)


def test_equal_tokens_are_alike_and_those_at_right_angles_are_not():
    x = torch.cat([torch.ones(1, 1, 16, 16), 3 * torch.eye(16)[None, None]], dim=2)
    torch.testing.assert_close(similarity(x, 16), torch.tensor([[[1.0, 1 / 16]]]))


def test_similarity_is_the_mean_cosine_of_all_pairs():
    x = torch.randn(1, 2, 73, 8)
    cosine = torch.nn.functional.cosine_similarity(x[:, :, :, None], x[:, :, None], dim=-1)
    by_hand = [cosine[:, :, i : i + 16, i : i + 16].mean(dim=(2, 3)) for i in range(0, 73, 16)]
    torch.testing.assert_close(similarity(x, 16), torch.stack(by_hand, dim=-1))


def test_unlike_keys_are_read_by_all_rows_and_unlike_queries_read_all_keys(make_inputs):
    """The rule of the paper, row by row: -inf before the softmax, then the cumulative share."""
    q = torch.randn(1, 2, 5, 8).repeat_interleave(16, dim=2)[:, :, :73]
    k = torch.randn(1, 2, 5, 8).repeat_interleave(16, dim=2)[:, :, :73]
    q[:, 0, 16:32], k[:, 1, 32:48] = torch.randn(16, 8), torch.randn(16, 8)
    inputs = call(make_inputs, q=q, k=k)
    policy = PRESETS["sparge"].override({"p": 0.7, "block": 16}).policy
    rows, columns = unlike(inputs, 0.6)
    assert rows.nonzero().tolist() == [[0, 0, 1]]
    assert columns.nonzero().tolist() == [[0, 1, 2]]
    keep = policy.plan(policy.estimate(inputs), inputs).to_block_mask()[0]
    always = inputs.blocks.always_kept
    scores = policy.estimate(inputs).scores[0].masked_fill(columns[0, :, None], -math.inf)
    for head in range(2):
        for i in range(5):
            share = scores[head, i].softmax(dim=-1)
            by_hand = set(always[i].nonzero().flatten().tolist()) | ({2} if head else set())
            total = float(share[list(by_hand)].sum())  # what is kept anyway counts
            for j in share.argsort(descending=True).tolist():
                if total < 0.7 and j not in by_hand:
                    by_hand.add(j)
                    total += float(share[j])
            by_hand = set(range(5)) if (head, i) == (0, 1) else by_hand
            assert set(keep[head, i].nonzero().flatten().tolist()) == by_hand, (head, i)


def test_a_judge_goes_with_costs_and_with_a_density(make_inputs):
    inputs = call(make_inputs, grid=TokenGrid(2, 8, 8))
    for name in ("balanced", "draft"):
        policy = PRESETS[name].override({"min_similarity": 1.0, "density": 0.2}).policy
        assert bool(policy.plan(policy.estimate(inputs), inputs).to_block_mask().all())
        policy = PRESETS[name].override({"min_similarity": -1.0, "density": 0.2}).policy
        plain = PRESETS[name].override({"density": 0.2}).policy
        plans = [
            each.plan(each.estimate(inputs), inputs).to_block_mask() for each in (policy, plain)
        ]
        assert torch.equal(*plans)


@pytest.mark.parametrize("name", ["sparge", "draft", "balanced"])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_unlike_blocks_come_beside_a_density_and_take_nothing_from_others(
    make_inputs, name, density
):
    """One head of unlike tokens once took the whole density of its layer."""
    grid = TokenGrid(2, 8, 8)
    q, k = (torch.randn(1, 2, 8, 8).repeat_interleave(16, dim=2) for _ in "qk")
    q[:, 0], k[:, 0] = torch.randn(128, 8), torch.randn(128, 8)
    k[:, 1, 32:48] = torch.randn(16, 8)
    inputs = call(make_inputs, grid=grid, q=q, k=k)
    changes = {"density": density, "block": 16}
    judges, plain = (
        PRESETS[name].override(changes | {"min_similarity": least}).policy for least in (0.6, -1.0)
    )
    keep, without = (
        each.plan(each.estimate(inputs), inputs).to_block_mask() for each in (judges, plain)
    )
    rows, columns = unlike(inputs, 0.6)
    assert rows[0, 0].all()
    assert columns[0, 1].tolist() == [False, False, True] + [False] * 5
    assert torch.equal(keep, without | rows[..., None] | columns[..., None, :])
    assert float(without[0, 1].float().mean()) > density / 2


@pytest.mark.parametrize("given", [{"density": 0.2}, {"mean_density": 0.35}, {}])
def test_it_is_said_that_a_density_is_not_all(given):
    notes = list(Planner(PRESETS["sparge"].override(given).policy).notes)
    if not given:
        assert notes == []
        return
    ((name, value),) = given.items()
    assert f"(min_similarity=0.6) are computed beside {name}={value}: how much" in notes[0]


def test_two_values_of_a_mean_are_one_deviation_from_their_mean(make_inputs):
    """Of mean keys +1 and -1 along one axis in equal number, the +1 half is above tau .9."""
    grid = TokenGrid(1, 8, 16)
    sign = torch.tensor([1.0, -1.0] * 4).repeat_interleave(16)
    axis = torch.zeros(1, 2, 128, 8)
    axis[..., 0] = 1.0
    inputs = call(make_inputs, grid=grid, q=axis, k=axis * sign[:, None])
    half = [[j % 2 == 0 for j in range(8)] for _ in range(8)]
    band = [[abs(i - j) <= 1 for j in range(8)] for i in range(8)]
    for tau, wanted in ((0.9, half), (1.1, [[False] * 8] * 8)):
        policy = PRESETS["sol"].override({"tau": tau, "block": 16}).policy
        keep = policy.plan(policy.estimate(inputs), inputs).to_block_mask()
        by_hand = torch.tensor(wanted) | torch.tensor(band)
        assert torch.equal(keep, by_hand.expand_as(keep))


@pytest.mark.parametrize("way", [1.0, 0.5])
def test_the_threshold_is_mean_and_deviation_of_each_row(make_inputs, way):
    inputs = call(make_inputs)
    policy = PRESETS["sol"].override({"tau": 0.5, "near": 0, "block": 16}).policy
    keep = policy.plan(policy.estimate(inputs), inputs, way=way).to_block_mask()
    scores = inputs.q_means @ inputs.k_means.mT * 0.4
    share = 1 - way * 0.6914624612740131  # of normal scores below half a deviation
    tau = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - share)))
    mean, deviation = (
        scores.mean(dim=-1, keepdim=True),
        scores.std(dim=-1, keepdim=True, correction=0),
    )
    by_hand = (scores > mean + tau * deviation) | inputs.blocks.always_kept
    assert torch.equal(keep, by_hand)


def test_a_density_keeps_what_is_farthest_above_the_mean(make_inputs):
    inputs = call(make_inputs, grid=TokenGrid(2, 16, 16))
    policy = PRESETS["sol"].override({"density": 0.3, "block": 16}).policy
    plan = policy.plan(policy.estimate(inputs), inputs)
    torch.testing.assert_close(plan.head_density(), torch.full((1, 2), 0.3), atol=0.003, rtol=0)


def test_subblock_sums_the_mass_of_four_by_four_means(make_inputs):
    inputs = call(make_inputs, grid=TokenGrid(2, 8, 8))
    policy = PRESETS["subblock"].override({"block": 16}).policy
    q, k, _ = (x.unflatten(2, (-1, 4)).mean(dim=3) for x in inputs.qkv)
    pairs = (q @ k.mT * 0.4).unflatten(-1, (8, 4)).unflatten(-3, (8, 4))
    by_hand = pairs.logsumexp(dim=(3, 5))
    torch.testing.assert_close(policy.estimate(inputs).scores, by_hand, atol=1e-5, rtol=1e-4)
    counts = policy.plan(policy.estimate(inputs), inputs).kv_count
    assert counts.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sparge", {"min_similarity": 1.5}, r"min_similarity must be in \[-1, 1\], got 1.5"),
        ("semantic", {"min_similarity": 0.5}, "the order makes clusters"),
        ("paro", {"min_similarity": 0.5}, "heads choose among several"),
        ("radial", {"min_similarity": 0.5}, "which this estimator does without"),
        ("coreset", {"min_similarity": 0.5}, "which this estimator does without"),
        ("draft", {"selector": "tokens", "min_similarity": 0.5}, "picks blocks for each token"),
        ("sol", {"tau": 6}, r"tau must be in \[-5, 5\], got 6"),
        ("sol", {"tau": "none"}, "selector=deviation needs tau"),
        ("sol", {"near": -1}, "near must be at least 0, got -1"),
        ("sol", {"tau": 1, "density": 0.3}, "tau does nothing in preset 'sol'"),
    ],
)
def test_what_does_not_go_together_is_refused(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)
