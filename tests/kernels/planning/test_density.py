"""Density of lists, by both versions."""

import pytest
import torch

from vidsparse.kernels.plan import BlockPlan, block_sizes
from vidsparse.kernels.planning.density import density_of_lists


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("stand_ins", [False, True])
@pytest.mark.parametrize(
    ("q_len", "kv_len", "shape"), [(64, 64, (1, 2)), (70, 50, (2, 1)), (2500, 33, (1, 1))]
)
def test_pairs_of_lists_are_counted(device, impl, stand_ins, q_len, kv_len, shape):
    rows, columns = -(-q_len // 16), -(-kv_len // 16)
    keep = torch.rand(*shape, rows, columns, device=device) < 0.5
    keep[0, 0, 0] = False  # an empty list has no short end
    keep[0, 0, 1] = True
    plan = BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=16, kv_block=16)
    found = density_of_lists(
        plan.kv_count, plan.kv_index, plan.q_sizes,
        kv_block=16, q_len=q_len, kv_len=kv_len, stand_ins=stand_ins, impl=impl,
    )  # fmt: skip
    keys = block_sizes(kv_len, 16, device)
    each = torch.where(keep, keys, float(stand_ins)).sum(dim=-1) * block_sizes(q_len, 16, device)
    torch.testing.assert_close(found, each.sum(dim=-1) / (q_len * kv_len))


def test_lists_that_a_head_shares_and_strides_of_any_kind(device):
    count = torch.tensor([[2, 1]], device=device, dtype=torch.int32)[:, None].expand(1, 3, 2)
    index = torch.tensor([[0, 2], [1, 9]], device=device, dtype=torch.int32).mT.contiguous().mT
    sizes = torch.tensor([8.0, 3.0], device=device)
    for lists in (index[None, None], index.expand(1, 3, 2, 2)):
        found = [
            density_of_lists(count, lists, sizes, kv_block=8, q_len=11, kv_len=20, impl=impl)
            for impl in ("triton", "reference")
        ]
        torch.testing.assert_close(found[0], found[1])
        torch.testing.assert_close(found[0], torch.full((1, 3), (8 * 12 + 3 * 8) / 220).to(device))
