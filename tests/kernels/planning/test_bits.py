"""Bits of lists, and lists of bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.bits import lists_of_bits, pack_bits, pack_lists, unpack_bits

IMPLS = ["triton", "reference"]


def random_lists(device, rows, number, share):
    keep = torch.rand(2, 3, rows, number, device=device) < share
    keep[..., -1] |= ~keep.any(dim=-1)
    size = {"q_len": rows, "kv_len": number, "q_block": 1, "kv_block": 1}
    plan = BlockPlan.from_mask(keep, **size)
    return keep, plan.kv_count, plan.kv_index


@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), number=st.integers(1, 150), share=st.sampled_from([0.0, 0.3, 1.0]))
@pytest.mark.parametrize("impl", IMPLS)
def test_lists_become_the_bits_of_their_mask_and_lists_again(device, impl, rows, number, share):
    keep, count, index = random_lists(device, rows, number, share)
    used = torch.arange(number, device=device) < count[..., None]
    listed = index.where(used, 10**6)  # what is behind the count is not read
    packed = pack_lists(count, listed, number, impl=impl)
    assert torch.equal(packed, pack_bits(keep))
    assert torch.equal(unpack_bits(packed, number), keep)
    again = lists_of_bits(packed, number, impl=impl)
    assert torch.equal(again[0], count)
    assert torch.equal(again[1][used], index[used])
    assert again[0].dtype == again[1].dtype == torch.int32


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_without_bits_lists_the_first_block(device, impl):
    packed = torch.zeros(1, 1, 2, 2, dtype=torch.uint8, device=device)
    count, index = lists_of_bits(packed, 11, impl=impl)
    assert count.tolist() == [[[1, 1]]]
    assert index[..., 0].tolist() == [[[0, 0]]]


@pytest.mark.parametrize("impl", IMPLS)
def test_narrow_lists_of_wide_rows(device, impl):
    count = torch.tensor([[[2, 1]]], dtype=torch.int32, device=device)
    index = torch.tensor([[[[70, 3], [64, 5]]]], dtype=torch.int32, device=device)
    keep = unpack_bits(pack_lists(count, index, 71, impl=impl), 71)
    assert keep.nonzero().tolist() == [[0, 0, 0, 3], [0, 0, 0, 70], [0, 0, 1, 64]]


def test_another_implementation_is_refused():
    with pytest.raises(BadInputError, match="unknown impl 'cuda'"):
        lists_of_bits(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), 3, impl="cuda")
