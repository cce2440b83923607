"""Pooled and random scores, and the policy around them."""

import math

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled
from vidsparse.policies.radial import Radial
from vidsparse.policies.random import Random
from vidsparse.policies.selectors import Threshold, TopK


def column(values):
    """One head of dimension one."""
    return torch.tensor(values).float()[None, None, :, None]


def test_pooled_scores_equal_a_small_example_worked_by_hand(make_inputs):
    # five tokens in blocks of two: means of q are 2, -1, 3 and of k are 1, 4, -2
    q, k = column([1, 3, -2, 0, 3]), column([0, 2, 5, 3, -2])
    inputs = make_inputs(TokenGrid(1, 1, 5), 2, q=q, k=k, scale=0.5)
    ln2 = math.log(2)
    by_hand = [[1 + ln2, 4 + ln2, -2], [-0.5 + ln2, -2 + ln2, 1], [1.5 + ln2, 6 + ln2, -3]]
    scores = Pooled().estimate(inputs).scores
    torch.testing.assert_close(scores, torch.tensor(by_hand)[None, None])


def test_pooled_picks_the_diagonal_and_then_the_best(make_inputs):
    q, k = column([1, 3, -2, 0, 3]), column([0, 2, 5, 3, -2])
    inputs = make_inputs(TokenGrid(1, 1, 5), 2, q=q, k=k, scale=0.5)
    plan = Policy(estimator=Pooled(), density=0.67).plan(Pooled().estimate(inputs), inputs)
    keep = plan.to_block_mask()
    assert keep[0, 0].tolist() == [[True, True, False], [False, True, True], [False, True, True]]


def test_pooled_looks_at_every_batch_and_head_by_itself(make_inputs):
    q, k = torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    grid = TokenGrid(1, 5, 8)
    whole = Pooled().estimate(make_inputs(grid, 16, q=q, k=k)).scores
    alone = Pooled().estimate(make_inputs(grid, 16, q=q[1:, 2:], k=k[1:, 2:])).scores
    torch.testing.assert_close(whole[1:, 2:], alone)


def random_scores(make_inputs, **changes):
    seed = changes.pop("seed", 0)
    return (
        Random(seed=seed).estimate(make_inputs(TokenGrid(4, 4, 4), 16, heads=2, **changes)).scores
    )


def test_random_scores_are_the_same_whenever_they_are_drawn(make_inputs):
    first = random_scores(make_inputs, layer=3)
    torch.rand(5)
    assert torch.equal(random_scores(make_inputs, layer=3), first)


@pytest.mark.parametrize("changes", [{"layer": 1}, {"seed": 1}])
def test_random_scores_differ_between_layers_and_seeds(make_inputs, changes):
    assert not torch.equal(random_scores(make_inputs), random_scores(make_inputs, **changes))


def test_random_scores_differ_between_heads(make_inputs):
    scores = random_scores(make_inputs)
    assert not torch.equal(scores[:, 0], scores[:, 1])


def test_the_diagonal_and_all_rows_and_columns_with_text_are_always_kept(make_inputs):
    # 20 tokens of text, 80 of video, 5 of text: blocks 0, 1 and 6 hold some
    inputs = make_inputs(TokenGrid(2, 4, 10, prefix=20, suffix=5), 16)
    text = {0, 1, 6}
    by_hand = [[bool(text & {i, j}) or i == j for j in range(7)] for i in range(7)]
    assert inputs.blocks.always_kept.tolist() == by_hand
    only_video = make_inputs(TokenGrid(2, 4, 5), 16).blocks.always_kept
    assert torch.equal(only_video, torch.eye(3).bool())


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_a_density_outside_0_to_1_is_refused(density):
    with pytest.raises(BadInputError, match=r"density must be in \(0, 1\]"):
        Policy(estimator=Pooled(), density=density)


@pytest.mark.parametrize("block", [0, 8, 24, 272])
def test_a_block_no_kernel_takes_is_refused(block):
    with pytest.raises(BadInputError, match="block must be a multiple of 16 from 16 to 256"):
        Policy(estimator=Pooled(), density=0.5, block=block)


@pytest.mark.parametrize(
    ("estimator", "selector"),
    [
        (Pooled(), TopK()),
        (Radial(), TopK()),
        (Pooled(), Threshold()),
        (Random(), Threshold()),
    ],
)
def test_a_policy_that_only_ranks_blocks_needs_a_density(estimator, selector):
    with pytest.raises(BadInputError, match="only ranks blocks: give it a density"):
        Policy(estimator=estimator, selector=selector)
