"""Block mass and value error, against sums over tokens."""

import math

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.block_scores import block_mass, block_value_error
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks

IMPLS = ["triton", "reference"]


def parts_of(x, block, parts):
    means = pool_blocks(x, block, parts=parts, impl="reference")
    return means[:, :, :, None] if parts == 1 else means


def mass_of(q, k, block, a, b, scale, impl):
    sizes = (part_sizes(x.shape[2], block, n, x.device) for x, n in ((q, a), (k, b)))
    return block_mass(parts_of(q, block, a), parts_of(k, block, b), *sizes, scale=scale, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (4, 4), (2, 4), (1, 2), (4, 1)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(64, 64), (50, 77), (5, 130)])
def test_mass_equals_a_loop_over_parts(oracle, device, impl, a, b, q_len, kv_len):
    q, k, _ = oracle.qkv(2, 2, q_len, kv_len, 24, device=device)
    got = mass_of(q, k, 16, a, b, 0.7, impl)
    qs, ks = (parts_of(x, 16, n).double() for x, n in ((q, a), (k, b)))
    q_size, k_size = part_sizes(q_len, 16, a), part_sizes(kv_len, 16, b)
    for i in range(got.shape[2]):
        for j in range(got.shape[3]):
            total = 0.0
            for x in range(a):
                for y in range(b):
                    score = (qs[:, :, i, x] * ks[:, :, j, y]).sum(-1) * 0.7
                    weight = float(q_size[i, x] / q_size[i].sum() * k_size[j, y])
                    total = total + weight * score.exp()
            oracle.assert_as_exact(got[:, :, i, j], torch.as_tensor(total).log(), torch.float32, 20)


@pytest.mark.parametrize("impl", IMPLS)
def test_with_a_part_for_every_token_the_mass_is_exact(oracle, device, impl):
    q, k, _ = oracle.qkv(1, 2, 32, 40, 16, device=device)
    got = mass_of(q, k, 16, 16, 16, 0.5, impl)
    scores = (q.double() @ k.double().mT * 0.5).exp()
    scores = torch.nn.functional.pad(scores, (0, 8)).unflatten(3, (3, 16)).sum(-1)
    exact = scores.unflatten(2, (2, 16)).mean(dim=3).log()
    oracle.assert_as_exact(got, exact, torch.float32, times=20)


@pytest.mark.parametrize("impl", IMPLS)
def test_large_scores_do_not_overflow(oracle, device, impl):
    q, k, _ = oracle.qkv(1, 1, 32, 32, 16, device=device)
    assert mass_of(100 * q, 100 * k, 16, 2, 2, 1.0, impl).isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_value_error_is_the_mass_times_the_distance_to_the_output(device, impl, shift):
    mass = torch.randn(2, 2, 5, 70, device=device)
    value = torch.randn(2, 2, 70, 24, device=device) + shift
    got = block_value_error(mass, value, impl=impl).double()
    share = mass.double().softmax(dim=-1)
    output = share @ value.double()
    for i in range(5):
        distance = (value.double() - output[:, :, i : i + 1]).norm(dim=-1)
        expected = share[:, :, i] * distance
        tolerance = 1e-5 + 1e-4 * (shift > 0)
        torch.testing.assert_close(got[:, :, i], expected, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_of_one_block_costs_nothing_to_skip_by_this_measure(device, impl):
    value = torch.randn(1, 1, 1, 8, device=device)
    error = block_value_error(torch.zeros(1, 1, 3, 1, device=device), value, impl=impl)
    assert float(error.max()) == pytest.approx(0, abs=1e-4)


def test_odd_numbers_of_parts_are_refused():
    x = torch.zeros(1, 1, 2, 3, 8)
    sizes = torch.ones(2, 3)
    with pytest.raises(BadInputError, match="query parts must be 1, 2, 4, 8 or 16, got 3"):
        block_mass(x, x, sizes, sizes, scale=math.pi)
