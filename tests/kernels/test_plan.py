"""The block plan: its layout, its checks and its density."""

import dataclasses
from typing import Any

import pytest
import torch

from vidsparse.kernels.plan import BlockPlan, block_sizes
from vidsparse.kernels.validate import validated

SIZES: Any = {
    "q_len": 10,
    "kv_len": 7,
    "q_block": 4,
    "kv_block": 3,
}  # 3 x 3 blocks, both ends short
KEEP = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]]).bool()[None, None]


def plan(**changes):
    return dataclasses.replace(BlockPlan.from_mask(KEEP, **SIZES), **changes)


def int32(rows):
    return torch.tensor(rows, dtype=torch.int32)[None, None]


def test_lists_are_int32_ascending_and_start_with_the_kept_blocks():
    made = plan()
    assert made.kv_count.dtype == made.kv_index.dtype == torch.int32
    assert made.kv_count.tolist() == [[[2, 1, 3]]]
    assert made.kv_index.shape == (1, 1, 3, 3)
    lists = [
        row[:count].tolist() for row, count in zip(made.kv_index[0, 0], [2, 1, 3], strict=True)
    ]
    assert lists == [[0, 2], [1], [0, 1, 2]]


def test_numbers_of_blocks_round_up():
    assert (plan().num_q_blocks, plan().num_kv_blocks) == (3, 3)


def test_a_mask_survives_the_round_trip_through_lists():
    keep = torch.rand(2, 3, 5, 7) < 0.5
    keep[..., 2] = True
    made = BlockPlan.from_mask(keep, q_len=80, kv_len=112, q_block=16, kv_block=16)
    assert torch.equal(validated(made).to_block_mask(), keep)


def test_the_token_mask_cuts_short_last_blocks_on_both_sides():
    mask = plan().to_dense_mask()
    assert mask.shape == (1, 1, 10, 7)
    by_hand = [[KEEP[0, 0, i // 4, j // 3] for j in range(7)] for i in range(10)]
    assert mask[0, 0].tolist() == by_hand


def test_density_counts_short_blocks_at_their_true_size():
    # rows of 4, 4 and 2 queries read 3 + 1, 3 and 7 keys
    assert plan().density == pytest.approx((4 * 4 + 4 * 3 + 2 * 7) / 70, abs=1e-7)


@pytest.mark.parametrize(("q_len", "kv_len"), [(80, 112), (65, 97), (79, 111)])
def test_density_of_every_head_equals_the_mean_of_its_token_mask(oracle, q_len, kv_len):
    made = oracle.plan(2, 3, q_len, kv_len, 16, 16)
    by_token = made.to_dense_mask().float().mean(dim=(-2, -1))
    torch.testing.assert_close(made.head_density(), by_token)
    assert made.density == pytest.approx(float(by_token.mean()), abs=1e-6)


def test_a_valid_plan_passes_its_own_check():
    made = plan()
    assert validated(made) is made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_count": torch.tensor([[[2, 1, 3]]])}, "kv_count must be int32, got torch.int64"),
        ({"kv_index": plan().kv_index.float()}, "kv_index must be int32, got torch.float32"),
        ({"q_len": 13}, "a plan of 4 query blocks needs"),
        ({"kv_count": int32([2, 1])}, "a plan of 3 query blocks needs"),
        ({"kv_index": plan().kv_index.expand(1, 2, 3, 3)}, "a plan of 3 query blocks needs"),
        ({"kv_count": int32([2, 0, 3])}, "between 1 and 3 key blocks, got counts from 0 to 3"),
        ({"kv_count": int32([2, 4, 3])}, "between 1 and 3 key blocks, got counts from 2 to 4"),
        ({"kv_index": int32([[0, 2, 1], [3, 0, 0], [0, 1, 2]])}, r"in \[0, 3\), got 0 to 3"),
        ({"kv_index": int32([[0, 2, 1], [-1, 0, 0], [0, 1, 2]])}, r"in \[0, 3\), got -1 to 2"),
        ({"kv_index": int32([[2, 2, 1], [1, 0, 0], [0, 1, 2]])}, "the same key block twice"),
    ],
)
def test_a_broken_plan_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        validated(plan(**changes))


def test_entries_after_the_count_are_never_read():
    made = plan(kv_index=int32([[0, 2, -1], [1, 99, 2**30], [0, 1, 2]]))
    assert torch.equal(validated(made).to_block_mask(), KEEP)
    assert made.density == plan().density


def test_bytes_count_the_lists_and_the_pooled_means(oracle):
    assert plan().nbytes() == 4 * (3 + 9)
    k = torch.randn(2, 1, 7, 5)
    assert plan(pooled=oracle.pooled(k, k, 3)).nbytes() == 4 * (3 + 9) + 4 * (2 * 2 * 3 * 5 + 3)


@pytest.mark.parametrize(
    ("length", "block", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1])]
)
def test_the_last_block_has_the_tokens_that_are_left(length, block, sizes):
    assert block_sizes(length, block).tolist() == sizes


def offsets(*edges):
    return torch.tensor([[edges]], dtype=torch.int32)


def unequal(**changes):
    made = BlockPlan.from_mask(
        KEEP, **SIZES, q_offsets=offsets(0, 1, 9, 10), kv_offsets=offsets(0, 5, 5, 7)
    )
    return dataclasses.replace(made, **changes)


def test_unequal_blocks_count_at_their_own_size():
    made = validated(unequal())
    assert made.q_sizes.tolist() == [[[1, 8, 1]]]
    assert made.kv_sizes.tolist() == [[[5, 0, 2]]]
    assert made.density == pytest.approx((1 * 7 + 8 * 0 + 1 * 7) / 70)
    assert made.to_dense_mask().float().mean() == pytest.approx(made.density)


@pytest.mark.parametrize("share", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_density_with_unequal_blocks_equals_the_token_masks(oracle, share):
    made = oracle.plan(*share, 40, 50, 16, 16, q_blocks=5, kv_blocks=7)
    assert made.density == pytest.approx(float(made.to_dense_mask().float().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_offsets": offsets(0, 1, 9, 11)}, "q_offsets must cover the sequence from 0 to 10"),
        ({"kv_offsets": offsets(1, 5, 5, 7)}, "kv_offsets must cover the sequence from 0 to 7"),
        ({"q_offsets": offsets(0, 9, 1, 10)}, "q_offsets must not decrease"),
        ({"q_offsets": offsets(0, 1, 9, 10).long()}, "q_offsets must be int32, got torch.int64"),
        ({"q_offsets": offsets(0, 10)}, "a plan of 1 query blocks needs"),
        ({"q_offsets": offsets(0, 1, 9, 10)[0]}, r"q_offsets must be \(B, H, 4\), got \(1, 4\)"),
        (
            {"kv_offsets": offsets(0, 5, 5, 7).expand(1, 2, -1),
             "kv_index": plan().kv_index.expand(1, 3, 3, 3),
             "kv_count": plan().kv_count.expand(1, 3, 3)},
            r"kv_offsets is for \(1, 2\) \(batch, heads\), the lists for \(1, 3\)",
        ),
        ({"kv_index": int32([[2, 0, 1], [1, 0, 0], [0, 1, 2]])}, "in ascending order"),
    ],
)  # fmt: skip
def test_a_broken_plan_of_unequal_blocks_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        validated(unequal(**changes))


def test_pooled_means_must_be_one_for_each_key_block(oracle):
    k = torch.randn(1, 1, 10, 5)
    with pytest.raises(ValueError, match=r"pooled\.key must be"):
        validated(plan(pooled=oracle.pooled(k, k, 3)))
