"""Means of blocks and of their parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks, pool_ragged

IMPLS = ["triton", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("seq", [3, 16, 17, 31, 48])
def test_a_short_tail_averages_only_its_own_tokens(oracle, device, seq, impl):
    x = torch.randn(2, seq, 3, 5, device=device).transpose(1, 2)
    expected = oracle.block_means(x, 16)
    torch.testing.assert_close(pool_blocks(x, 16, impl=impl), expected)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seq=st.integers(1, 150), parts=st.sampled_from([1, 2, 4]), block=st.sampled_from([16, 48, 64])
)
@pytest.mark.parametrize("impl", IMPLS)
def test_parts_are_means_of_their_tokens_and_empty_ones_are_zero(device, impl, seq, parts, block):
    x = torch.randn(1, seq, 2, 20, device=device).transpose(1, 2)
    means = pool_blocks(x, block, parts=parts, impl=impl)
    sizes = part_sizes(seq, block, parts)
    means = means[:, :, :, None] if parts == 1 else means
    assert means.shape == (1, 2, *sizes.shape, 20)
    assert int(sizes.sum()) == seq
    token = 0
    for i in range(sizes.shape[0]):
        for a in range(parts):
            count = int(sizes[i, a])
            expected = x[:, :, token : token + count].double().sum(dim=2) / max(count, 1)
            torch.testing.assert_close(means[:, :, i, a].double(), expected, atol=1e-6, rtol=1e-5)
            token += count


@pytest.mark.parametrize("impl", IMPLS)
def test_means_are_taken_in_float32_and_given_in_the_dtype_asked_for(device, impl):
    x = torch.full((1, 1, 16, 1), 1 / 3, device=device)
    assert pool_blocks(x.bfloat16(), 16, impl=impl).dtype == torch.float32
    overflowing = x.half() * 60_000  # a float16 sum would overflow
    assert pool_blocks(overflowing, 16, impl=impl).isfinite().all()
    assert pool_blocks(x, 16, dtype=torch.float16, impl=impl).dtype == torch.float16


def test_float64_stays_float64_on_the_reference():
    assert (
        pool_blocks(torch.ones(1, 1, 16, 1).double(), 16, impl="reference").dtype == torch.float64
    )


def test_gradients_flow_through_the_reference():
    x = torch.randn(1, 1, 20, 3, requires_grad=True)
    pool_blocks(x, 16).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 0, :, 0], torch.tensor([1 / 16] * 16 + [1 / 4] * 4))


def test_parts_that_do_not_divide_the_block_are_refused():
    with pytest.raises(BadInputError, match="parts must divide the block of 16 tokens, got 3"):
        pool_blocks(torch.ones(1, 1, 16, 1), 16, parts=3)
    with pytest.raises(BadInputError, match="unknown impl 'cuda'"):
        pool_blocks(torch.ones(1, 1, 16, 1), 16, impl="cuda")


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seq=st.integers(1, 120), blocks=st.integers(1, 9), shared=st.booleans())
@pytest.mark.parametrize("impl", IMPLS)
def test_ragged_blocks_average_their_tokens_and_empty_ones_are_zero(
    device, impl, seq, blocks, shared
):
    x = torch.randn(2, seq, 3, 20, device=device).transpose(1, 2)
    shape = (1, 1) if shared else (2, 3)
    cuts = torch.randint(seq + 1, (*shape, blocks - 1), device=device).sort(dim=-1).values
    ends = torch.zeros(*shape, 1, dtype=torch.int64, device=device)
    offsets = torch.cat([ends, cuts, ends + seq], dim=-1).int()
    means = pool_ragged(x, offsets, impl=impl)
    assert means.shape == (2, 3, blocks, 20)
    each = offsets.expand(2, 3, -1)
    for b, h, i in [(0, 0, 0), (1, 2, blocks - 1), (1, 0, blocks // 2)]:
        start, stop = each[b, h, i : i + 2].tolist()
        expected = x[b, h, start:stop].double().sum(dim=0) / max(1, stop - start)
        torch.testing.assert_close(means[b, h, i].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("worth", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_counts_as_zero_where_asked_for(device, impl, worth):
    x = torch.randn(1, 2, 50, 20, device=device)
    x[..., 7, :], x[..., 33, 2] = 0.0, 0.0
    offsets = torch.tensor([[[0, 7, 7, 40, 50]]], dtype=torch.int32, device=device)
    expected = [pool_blocks(x, 16, parts=2, impl=impl), pool_ragged(x, offsets, impl=impl)]
    x[..., 7, :], x[..., 33, 2] = worth, worth
    got = [
        pool_blocks(x, 16, parts=2, finite=True, impl=impl),
        pool_ragged(x, offsets, finite=True, impl=impl),
    ]
    torch.testing.assert_close(got, expected)
    assert not pool_blocks(x, 16, impl=impl).isfinite().all()
