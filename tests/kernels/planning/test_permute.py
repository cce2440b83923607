"""Orders and permutations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.permute import (
    inverse_order,
    order_by_label,
    permute_together,
    permute_tokens,
    unpermute_tokens,
)

IMPLS = ["triton", "reference"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seq=st.integers(1, 600), clusters=st.integers(1, 40))
@pytest.mark.parametrize("impl", IMPLS)
def test_tokens_are_sorted_by_label_stably(device, impl, seq, clusters):
    labels = torch.randint(0, clusters, (1, 2, seq), dtype=torch.int32)
    order, offsets = order_by_label(labels.to(device), clusters, impl=impl)
    assert order.dtype == offsets.dtype == torch.int32
    for h in range(2):
        by_hand = sorted(range(seq), key=lambda token: int(labels[0, h, token]))
        assert order[0, h].tolist() == by_hand
        starts = [int((labels[0, h] < c).sum()) for c in range(clusters + 1)]
        assert offsets[0, h].tolist() == starts


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_permuting_takes_tokens_from_their_places_and_back(oracle, device, impl, shared):
    x = torch.randn(2, 70, 3, 24, device=device).transpose(1, 2)
    order = oracle.order(*shared, 70).to(device)
    y = permute_tokens(x, order, impl=impl)
    assert y.is_contiguous()
    for b in range(2):
        for h in range(3):
            taken = order[b % shared[0], h % shared[1]].long()
            assert torch.equal(y[b, h], x[b, h, taken])
    back = unpermute_tokens(y, order, like=x, impl=impl)
    assert torch.equal(back, x)
    assert back.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("shared", [(1, 1), (2, 3)])
def test_tensors_are_permuted_together_as_each_alone(oracle, device, impl, number, shared):
    first = torch.randn(2, 70, 3, 24, device=device).transpose(1, 2)
    others = [torch.randn(2, 3, 70, 24, device=device) for _ in range(number - 1)]
    order = oracle.order(*shared, 70).to(device)
    together = permute_together([first, *others], order, impl=impl)
    assert len(together) == number
    for x, y in zip([first, *others], together, strict=True):
        assert y.is_contiguous()
        assert torch.equal(y, permute_tokens(x, order, impl="reference"))


def test_tensors_that_differ_are_permuted_one_by_one(oracle, device):
    xs = [torch.randn(1, 2, 20, dim, device=device) for dim in (4, 8)]
    order = oracle.order(1, 2, 20).to(device)
    for x, y in zip(xs, permute_together(xs, order, impl="triton"), strict=True):
        assert torch.equal(y, permute_tokens(x, order, impl="reference"))


def test_the_inverse_undoes_an_order(oracle):
    order = oracle.order(2, 3, 50)
    identity = torch.arange(50, dtype=torch.int32).expand(2, 3, 50)
    assert torch.equal(order.gather(-1, inverse_order(order).long()), identity)


def test_gradients_flow_both_ways(oracle):
    x = torch.randn(1, 2, 20, 4, requires_grad=True)
    order = oracle.order(1, 2, 20)
    weight = torch.randn(1, 2, 20, 4)
    (unpermute_tokens(permute_tokens(x, order).sin(), order) * weight).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().cos() * weight)


def test_an_order_of_another_length_is_refused(oracle):
    with pytest.raises(BadInputError, match="the order is for 5 tokens, got 6"):
        permute_tokens(torch.zeros(1, 1, 6, 2), oracle.order(1, 1, 5))
