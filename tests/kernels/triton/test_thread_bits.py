"""Bits of partial blocks as the threads of a Hopper consumer hold scores."""

import pytest
import torch

from vidsparse.kernels.plan import Partial
from vidsparse.kernels.triton.thread_bits import in_order_of_threads


def random_bits(number, q_block, words):
    return torch.randint(-(2**31), 2**31 - 1, (number, q_block, words), dtype=torch.int32)


@pytest.mark.parametrize(("q_block", "words"), [(64, 2), (128, 4), (192, 3), (256, 1)])
def test_the_kernel_makes_what_the_reference_makes(q_block, words):
    bits = random_bits(3, q_block, words)
    made = in_order_of_threads(bits, impl="triton")
    assert torch.equal(made, in_order_of_threads(bits, impl="reference"))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_each_pair_has_its_bit_in_the_word_of_the_thread_that_holds_its_score(impl):
    bits = random_bits(2, 64, 3)
    made = in_order_of_threads(bits, impl=impl)
    assert made.shape == (2, 2, 4, 8, 4)
    for row, column in [(0, 0), (7, 63), (8, 0), (25, 37), (63, 95), (40, 70), (17, 64)]:
        asked = bits[:, row, column // 32] >> (column % 32) & 1
        word = made[:, column // 64, row // 16, row % 8, column % 8 // 2]
        place = 4 * (column % 64 // 8) + 2 * (row % 16 // 8) + column % 2
        assert torch.equal(word >> place & 1, asked)


def test_columns_behind_the_last_word_are_not_computed():
    made = in_order_of_threads(torch.full((1, 16, 1), -1, dtype=torch.int32), impl="triton")
    assert torch.equal(made & 0xFFFF, torch.full_like(made, 0xFFFF))
    assert torch.equal(made >> 16, torch.zeros_like(made))


def test_a_plan_keeps_them_in_order():
    bits, none = random_bits(3, 64, 2), torch.zeros(1, 1, 1, dtype=torch.int32)
    partial = Partial(count=none, pattern=none[..., None], bits=bits)
    assert torch.equal(partial.in_order_of_threads, in_order_of_threads(bits))
    assert partial.in_order_of_threads is partial.in_order_of_threads
