"""Exact shares of blocks against a softmax in float64."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.exact_mass import exact_mass, largest_shares, listed_mass

IMPLS = ["triton", "reference"]


def by_hand(q, k, q_block, kv_block, scale, lse=None):
    scores = q.double() @ k.double().mT * scale
    own = scores.logsumexp(dim=-1) if lse is None else lse.double()
    share = (scores - own[..., None]).exp()
    columns = [part.sum(dim=-1) for part in share.split(kv_block, dim=-1)]
    rows = [part.mean(dim=2) for part in torch.stack(columns, dim=-1).split(q_block, dim=2)]
    return torch.stack(rows, dim=2), own


RAGGED = pytest.mark.parametrize(
    ("q_len", "kv_len", "q_block", "kv_block"),
    [(64, 64, 16, 16), (50, 77, 32, 16), (37, 130, 8, 64), (200, 150, 128, 128), (5, 40, 5, 24)],
)


@pytest.mark.parametrize("impl", IMPLS)
@RAGGED
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


@pytest.mark.parametrize("impl", IMPLS)
@RAGGED
def test_the_largest_share_of_any_pair(oracle, device, impl, q_len, kv_len, q_block, kv_block):
    q, k, _ = oracle.qkv(2, 2, q_len, kv_len, 24, device=device)
    found = largest_shares(q, k, q_block=q_block, kv_block=kv_block, scale=0.6, impl=impl)
    share = (q.double() @ k.double().mT * 0.6).softmax(dim=-1)
    columns = torch.stack([x.amax(dim=-1) for x in share.split(kv_block, dim=-1)], dim=-1)
    expected = torch.stack([x.amax(dim=2) for x in columns.split(q_block, dim=2)], dim=2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("heads", [1, 2])
@RAGGED
def test_mass_of_lists_is_attention_that_sees_nothing_else(
    oracle, device, impl, heads, q_len, kv_len, q_block, kv_block
):
    q, k, _ = oracle.qkv(2, 2, q_len, kv_len, 24, device=device)
    rows, columns = -(-q_len // q_block), -(-kv_len // kv_block)
    count = torch.randint(1, columns + 1, (1, heads, rows), device=device, dtype=torch.int32)
    index = torch.rand(1, heads, rows, columns, device=device).argsort(dim=-1).int()
    unread = torch.arange(columns, device=device) >= count[..., None]
    found = listed_mass(
        q, k, count, index.masked_fill(unread, 10_000),
        q_block=q_block, kv_block=kv_block, scale=0.6, impl=impl,
    )  # fmt: skip
    keep = torch.zeros(1, heads, rows, columns, dtype=torch.bool, device=device)
    keep.scatter_(-1, index.long(), ~unread)
    tokens = keep.repeat_interleave(q_block, dim=2)[:, :, :q_len]
    tokens = tokens.repeat_interleave(kv_block, dim=3)[..., :kv_len]
    scores = (q.double() @ k.double().mT * 0.6).masked_fill(~tokens, -torch.inf)
    share = scores.softmax(dim=-1)
    parts = torch.stack([x.sum(dim=-1) for x in share.split(kv_block, dim=-1)], dim=-1)
    expected = torch.stack([x.mean(dim=2) for x in parts.split(q_block, dim=2)], dim=2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert not found[~keep.expand_as(found)].any()
