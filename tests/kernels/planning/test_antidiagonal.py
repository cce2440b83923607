"""Antidiagonal scores against a loop over groups."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.antidiagonal import antidiagonal_scores

IMPLS = ["triton", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "block", "stride"),
    [
        (64, 64, 16, 8),
        (50, 77, 32, 8),
        (50, 77, 24, 8),
        (7, 130, 64, 16),
        (200, 200, 128, 4),
        (90, 300, 256, 2),
    ],
)
def test_scores_equal_a_loop_over_groups(oracle, device, impl, q_len, kv_len, block, stride):
    q, k, _ = oracle.qkv(1, 2, q_len, kv_len, 24, device=device)
    got = antidiagonal_scores(q, k, block=block, stride=stride, scale=0.6, impl=impl)
    queries, keys = (range(-(-n // stride)) for n in (q_len, kv_len))
    groups = torch.zeros(2, len(queries), len(keys), dtype=torch.float64, device=device)
    for u in queries:
        for r in range(stride):
            row, columns = u * stride + r, range(stride - 1 - r, kv_len, stride)
            if row < q_len:
                products = q[0, :, row, None].double() * k[0, :, columns].double()
                groups[:, u, : len(columns)] += products.sum(dim=-1) * 0.6 / stride
    share = groups.softmax(dim=-1)
    per_block = block // stride
    for i in range(-(-q_len // block)):
        rows = share[:, i * per_block : (i + 1) * per_block]
        for j in range(-(-kv_len // block)):
            expected = rows[:, :, j * per_block : (j + 1) * per_block].sum(dim=-1).mean(dim=-1)
            oracle.assert_as_exact(got[0, :, i, j], expected, torch.float32, times=20)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_sum_to_one(oracle, device, impl):
    q, k, _ = oracle.qkv(2, 2, 70, 100, 16, device=device)
    total = antidiagonal_scores(q, k, block=32, stride=8, scale=1.0, impl=impl).sum(dim=-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_stride_that_does_not_divide_the_block_is_refused(oracle):
    q, k, _ = oracle.qkv(1, 1, 32, 32, 8)
    with pytest.raises(BadInputError, match="stride must divide the block of 32 tokens, got 5"):
        antidiagonal_scores(q, k, block=32, stride=5, scale=1.0)
