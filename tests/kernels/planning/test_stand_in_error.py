"""Errors of stand-ins, against the formula in float64."""

from itertools import pairwise

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.pooling import pool_ragged
from vidsparse.kernels.planning.stand_in_error import stand_in_error

IMPLS = ["triton", "reference"]


def by_hand(query, k, v, edges, scale):
    query, k, v = query.double(), k.double(), v.double()
    weights = (query @ k.mT * scale).exp()
    columns = []
    for start, stop in pairwise(edges):
        key, value = k[..., start:stop, :], v[..., start:stop, :]
        n = max(1, stop - start)
        stand_in = (query @ (key.sum(-2) / n)[..., None] * scale).exp() * (value.sum(-2) / n)[
            ..., None, :
        ]
        exact = weights[..., start:stop, None] * value[..., None, :, :]
        columns.append((stand_in[..., None, :] - exact).square().sum((-1, -2)).sqrt())
    return torch.stack(columns, dim=-1) / weights.sum(-1, keepdim=True)


def errors_of(query, k, v, edges, scale, impl):
    offsets = torch.tensor(edges, dtype=torch.int32, device=k.device)[None, None]
    key, value = (pool_ragged(x, offsets, impl="reference") for x in (k, v))
    return stand_in_error(query, k, v, key, value, offsets, scale=scale, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("edges", "rows", "head_dim"),
    [([0, 3, 3, 20, 150], 5, 24), ([0, 130], 70, 16), ([0, 1, 2, 67, 70, 70], 17, 40)],
)
def test_errors_are_those_of_the_formula(oracle, device, impl, edges, rows, head_dim):
    query, k, v = oracle.qkv(2, 3, rows, edges[-1], head_dim, device=device)
    got = errors_of(query, k, v, edges, 0.3, impl)
    expected = by_hand(query, k, v, edges, 0.3)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_tokens_have_no_error_and_strides_do_not_matter(device, impl):
    query, k, v = (torch.randn(1, 20, 2, 16, device=device).transpose(1, 2) for _ in range(3))
    k[:, :, 4:12], v[:, :, 4:12] = k[:, :, 4:5].clone(), v[:, :, 4:5].clone()
    got = errors_of(query, k, v, [0, 4, 12, 20], 1.0, impl)
    assert float(got[..., 1].max()) < 2e-3 * float(v.norm(dim=-1).max())  # the root of rounding
    same = errors_of(query, k.contiguous(), v.contiguous(), [0, 4, 12, 20], 1.0, impl)
    torch.testing.assert_close(got.square(), same.square())  # roots of rounding differ more


@pytest.mark.parametrize("impl", IMPLS)
def test_large_scores_do_not_overflow(oracle, device, impl):
    query, k, v = oracle.qkv(1, 1, 9, 64, 16, device=device)
    assert errors_of(30 * query, 30 * k, v, [0, 30, 30, 64], 1.0, impl).isfinite().all()


def test_an_unknown_way_is_refused(oracle, device):
    query, k, v = oracle.qkv(1, 1, 9, 64, 16, device=device)
    with pytest.raises(BadInputError, match="choose auto, triton or reference"):
        errors_of(query, k, v, [0, 64], 1.0, "cuda")


def test_models_of_float64_have_them_too(oracle):
    query, k, v = (x.double() for x in oracle.qkv(1, 2, 5, 40, 16))
    got = errors_of(query, k, v, [0, 7, 40], 0.3, "reference")
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), by_hand(query, k, v, [0, 7, 40], 0.3), rtol=1e-3, atol=2e-4
    )
