"""Exact mass of blocks against a softmax in float64."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.exact_mass import exact_mass

IMPLS = ["triton", "reference"]


def by_hand(q, k, q_block, kv_block, scale, lse=None):
    scores = q.double() @ k.double().mT * scale
    own = scores.logsumexp(dim=-1) if lse is None else lse.double()
    share = (scores - own[..., None]).exp()
    columns = [part.sum(dim=-1) for part in share.split(kv_block, dim=-1)]
    rows = [part.mean(dim=2) for part in torch.stack(columns, dim=-1).split(q_block, dim=2)]
    return torch.stack(rows, dim=2), own


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "q_block", "kv_block"),
    [(64, 64, 16, 16), (50, 77, 32, 16), (37, 130, 8, 64), (200, 150, 128, 128), (5, 40, 5, 24)],
)
def test_equals_a_softmax(oracle, device, impl, q_len, kv_len, q_block, kv_block):
    q, k, _ = oracle.qkv(2, 2, q_len, kv_len, 24, device=device)
    blocks = {"q_block": q_block, "kv_block": kv_block}
    mass, lse = exact_mass(q, k, **blocks, scale=0.6, impl=impl)
    expected, expected_lse = by_hand(q, k, **blocks, scale=0.6)
    torch.testing.assert_close(mass.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_another_steps_sums_divide_the_rows(oracle, device, impl):
    q, k, _ = oracle.qkv(1, 2, 50, 77, 16, device=device)
    before = torch.randn(1, 2, 50, device=device) + 4
    mass, lse = exact_mass(q, k, q_block=16, kv_block=32, scale=0.6, lse=before, impl=impl)
    expected, _ = by_hand(q, k, 16, 32, 0.6, before)
    torch.testing.assert_close(mass.double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(lse, before)


def test_blocks_that_are_too_large_are_refused(oracle):
    q, k, _ = oracle.qkv(1, 1, 32, 32, 8)
    with pytest.raises(BadInputError, match="at most 256 on a GPU, got 512"):
        exact_mass(q, k, q_block=512, kv_block=16, scale=1.0, impl="triton")
