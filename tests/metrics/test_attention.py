"""Errors and masses of one attention call, against sums by hand and the full score matrix."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.metrics import attention
from vidsparse.metrics.attention import (
    block_mass,
    cosine,
    dense_rows,
    recall,
    relative_l1,
    sample_rows,
)


def make_qkv(seq=37, heads=3, batch=2, head_dim=8, dtype=torch.float64):
    return torch.randn(3, batch, heads, seq, head_dim, dtype=dtype).unbind()


def test_dense_rows_are_those_of_dense_attention(monkeypatch):
    q, k, v = make_qkv()
    rows = sample_rows(37, 11)
    whole = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(dense_rows(q[:, :, rows], k, v), whole[:, :, rows])
    monkeypatch.setattr(attention, "AT_ONCE", 2 * 3 * 37 * 4)  # four rows at a time
    torch.testing.assert_close(dense_rows(q[:, :, rows], k, v), whole[:, :, rows])
    scaled = scaled_dot_product_attention(q, k, v, scale=0.1)
    torch.testing.assert_close(dense_rows(q, k, v, 0.1), scaled)


def test_half_precision_is_computed_in_float32():
    q, k, v = make_qkv(dtype=torch.bfloat16)
    exact = scaled_dot_product_attention(q.float(), k.float(), v.float())
    made = dense_rows(q, k, v)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, exact)


def test_errors_by_hand():
    exact = torch.tensor([[[[1.0, 2.0], [-3.0, 0.0]], [[0.0, 4.0], [3.0, 0.0]]]])
    out = torch.tensor([[[[1.0, 1.0], [-2.0, 1.0]], [[4.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(relative_l1(out, exact), torch.tensor([[3 / 6, 11 / 7]]))
    first = (1 + 2 + 6) / (7**0.5 * 14**0.5)
    torch.testing.assert_close(cosine(out, exact), torch.tensor([[first, 0.0]]))


def test_equal_outputs_have_no_error_and_a_factor_shows_in_relative_l1_alone():
    exact = torch.randn(2, 3, 5, 8)
    assert relative_l1(exact, exact).max() == 0
    assert relative_l1(torch.zeros_like(exact), torch.zeros_like(exact)).max() == 0
    torch.testing.assert_close(cosine(2 * exact, exact), torch.ones(2, 3))
    torch.testing.assert_close(relative_l1(2 * exact, exact), torch.ones(2, 3))


def test_block_mass_is_the_sum_of_the_softmax_over_each_pair_of_blocks(monkeypatch):
    q, k, _ = make_qkv()
    block = torch.arange(37) // 16
    share = (q @ k.mT * 8**-0.5).softmax(dim=-1)
    onehot = torch.nn.functional.one_hot(block, 3).double()
    expected = onehot.T @ share @ onehot
    for few in (1 << 20, 2 * 3 * 37 * 5):
        monkeypatch.setattr(attention, "AT_ONCE", few)
        mass = block_mass(q, k, block[None, None], block[None, None], (3, 3))
        torch.testing.assert_close(mass, expected)
    torch.testing.assert_close(mass.sum(dim=(2, 3)), torch.full((2, 3), 37.0).double())


def test_block_mass_takes_blocks_of_their_own_for_each_head():
    q, k, _ = make_qkv(seq=12, heads=2, batch=1)
    q_block = torch.randint(0, 4, (1, 2, 12))
    kv_block = torch.randint(0, 3, (1, 2, 12))
    mass = block_mass(q, k, q_block, kv_block, (4, 3), scale=0.7)
    share = (q @ k.mT * 0.7).softmax(dim=-1)
    for head in range(2):
        for row in range(4):
            for column in range(3):
                pairs = (q_block[0, head] == row)[:, None] & (kv_block[0, head] == column)
                expected = share[0, head][pairs].sum()
                torch.testing.assert_close(mass[0, head, row, column], expected)


def test_recall_by_hand():
    mass = torch.tensor([[[[0.7, 0.3], [0.2, 1.8]]]])
    keep = torch.eye(2, dtype=torch.bool)[None, None]
    torch.testing.assert_close(recall(mass, keep), torch.tensor([[2.5 / 3]]))
    assert recall(mass, torch.ones_like(keep)) == 1
    assert recall(mass, torch.zeros_like(keep)) == 0


@pytest.mark.parametrize(("seq", "count"), [(10, 4), (75_600, 64), (5, 64), (2_800, 2_800)])
def test_sampled_rows_are_in_range_different_and_spread(seq, count):
    rows = sample_rows(seq, count)
    assert len(rows) == len(set(rows.tolist())) <= count
    assert 0 <= int(rows.min()) <= int(rows.max()) < seq
    assert int(rows.diff().max()) <= 3 * -(-seq // min(count, seq))
