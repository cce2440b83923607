"""Eight-bit attention: the reference against float64, the portable kernel against the reference."""

import dataclasses
import math
from functools import partial

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.low_bit import (
    INTERLEAVED,
    attend_quantized,
    low_bit_reference,
    quantize,
)
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.pooling import pool_ragged

FIELDS = ("query", "query_scale", "shift", "key", "key_scale", "value", "value_scale")
VALUES = [torch.float8_e4m3fn, torch.float16]


@pytest.fixture
def draw(oracle, device):
    """q, k and v where kernels run."""
    return partial(oracle.qkv, device=device)


def relative(ours, exact):
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def dense_plan(q_len, kv_len, block=64, device=None):
    keep = torch.ones(
        1, 1, -(-q_len // block), -(-kv_len // block), dtype=torch.bool, device=device
    )
    return BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=block, kv_block=block)


def run_kernel(x, plan, dtype=torch.float32, keys=64):
    from vidsparse.kernels.triton import low_bit_portable

    out = torch.empty(x.query.shape, dtype=dtype, device=x.query.device)
    lse = low_bit_portable.launch(x, plan, out, return_lse=True, keys=keys, num_warps=4)
    assert lse is not None
    return out, lse


@pytest.mark.parametrize("value_dtype", VALUES, ids=str)
@pytest.mark.parametrize("layout", ["plain", "interleaved"])
@pytest.mark.parametrize("key_block", [64, 128, None])
def test_the_quantising_pass_equals_the_reference(draw, device, value_dtype, layout, key_block):
    q, k, v = draw(2, 2, 70, 203, 48)
    options = {
        "scale": 0.2, "key_block": key_block, "value_dtype": value_dtype,
        "layout": layout,
    }  # fmt: skip
    ours = quantize(q, k, v, impl="triton", **options)
    exact = quantize(q, k, v, impl="reference", **options)
    for name in FIELDS:
        mine, theirs = getattr(ours, name).float(), getattr(exact, name).float()
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("head_dim", [48, 112])
@pytest.mark.parametrize("means", [0, 37])
def test_panels_equal_the_reference(draw, oracle, device, head_dim, means):
    q, k, v = draw(2, 2, 70, 203, head_dim)
    pooled = None
    if means:
        mean_key, mean_value = 3 * torch.randn(2, 2, 2, means, head_dim, device=device)
        size = torch.ones(means, device=device)
        pooled = Pooled(key=mean_key, value=mean_value, size=size)
    options = {"scale": 0.2, "key_block": None, "layout": "panels", "pooled": pooled}
    ours = quantize(q, k, v, impl="triton", **options)
    exact = quantize(q, k, v, impl="reference", **options)
    for name in (*FIELDS, *(("mean_key", "mean_value") if means else ())):
        mine, theirs = getattr(ours, name).float(), getattr(exact, name).float()
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_panels_hold_a_channels_values_side_by_side_once_tma_has_swizzled_them(draw, head_dim):
    q, k, v = draw(1, 1, 16, 100, head_dim)
    options = {"scale": 1.0, "key_block": None, "impl": "reference"}
    mixed = quantize(q, k, v, layout="interleaved", **options).value[0, 0].float()
    panels = quantize(q, k, v, layout="panels", **options).value[0, 0].float().flatten()
    at = torch.arange(panels.numel())
    row, sixteen = at // head_dim, at // 16 % (head_dim // 16)
    turn = row % 8 if head_dim == 128 else row % 8 // 2  # rows of 128 bytes, and of 64
    landed = torch.empty_like(panels)
    landed[row * head_dim + (sixteen ^ turn) * 16 + at % 16] = panels
    assert torch.equal(landed.view(-1, head_dim, 16).mT.flatten(0, 1), mixed)


def test_what_was_quantised_is_near_what_it_was(draw):
    q, k, v = draw(1, 2, 64, 256, 64)
    x = quantize(q, k, v, scale=1.0, impl="reference")
    query = x.query * x.query_scale[..., None] * math.log(2)
    key = x.key.unflatten(2, (-1, 128)) * x.key_scale[..., None, None]
    value = x.value.float() * x.value_scale[:, :, None]
    assert relative(query, q) < 0.01
    assert relative(key.flatten(2, 3), k - k.mean(dim=2, keepdim=True)) < 0.012
    assert relative(value, v) < 0.03
    torch.testing.assert_close(x.shift, (q * k.mean(dim=2, keepdim=True)).sum(dim=-1))


def test_interleaved_values_lie_where_the_products_accumulator_has_their_weights(draw):
    """Thread t of 4 holds columns 2t, 2t + 1, 2t + 8, 2t + 9, and gives the next 4t to 4t + 3."""
    assert [INTERLEAVED[4 * t : 4 * t + 4] for t in range(4)] == [
        (2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9) for t in range(4)
    ]
    q, k, v = draw(1, 1, 16, 64, 16)
    plain, mixed = (
        quantize(q, k, v, scale=1.0, key_block=64, layout=layout, impl="reference").value
        for layout in ("plain", "interleaved")
    )
    assert torch.equal(mixed[0, 0, 16:32].float(), plain[0, 0, 16:32].float()[list(INTERLEAVED)])


@pytest.mark.parametrize("value_dtype", VALUES, ids=str)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "q_block", "kv_block", "head_dim"),
    [(130, 301, 64, 128, 64), (77, 200, 32, 48, 40), (64, 129, 128, 64, 128)],
)
def test_kernel_equals_reference_on_ragged_plans(
    oracle, draw, device, value_dtype, q_len, kv_len, q_block, kv_block, head_dim
):
    q, k, v = draw(2, 2, q_len, kv_len, head_dim)
    plan = oracle.plan(2, 1, q_len, kv_len, q_block, kv_block, share=0.6, device=device)
    x = quantize(
        q, k, v, scale=0.3, key_block=64, value_dtype=value_dtype,
        impl="reference",
    )  # fmt: skip
    for keys in (64, 128):
        out, lse = run_kernel(x, plan, keys=keys)
        exact, exact_lse = attend_quantized(x, plan, keys=keys, dtype=torch.float32)
        assert relative(out, exact) < 1e-3  # a weight between two FP8 numbers may go either way
        torch.testing.assert_close(lse, exact_lse, rtol=1e-5, atol=1e-5)
        assert (out[lse.isinf()] == 0).all()


def test_kernel_equals_reference_on_clusters(oracle, draw, device):
    q, k, v = draw(1, 2, 90, 150, 32)
    plan = oracle.plan(1, 2, 90, 150, 64, 64, share=0.5, q_blocks=4, kv_blocks=7, device=device)
    x = quantize(q, k, v, scale=0.3, key_block=64, impl="reference")
    out, lse = run_kernel(x, plan)
    exact, exact_lse = attend_quantized(x, plan, keys=64, dtype=torch.float32)
    assert relative(out, exact) < 0.02  # tiles are cut elsewhere, so weights round elsewhere
    torch.testing.assert_close(lse, exact_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_error_against_float64(oracle, draw, device, impl):
    q, k, v = draw(2, 2, 100, 150, 64)
    plan = oracle.plan(2, 2, 100, 150, 64, 64, share=0.6, device=device)
    out, lse = low_bit_attention(q, k, v, plan, return_lse=True, impl=impl)
    exact, exact_lse = oracle.attention(q, k, v, plan)
    assert lse is not None
    assert out.stride() == torch.empty_like(q).stride()
    assert relative(out, exact) < 0.045  # Gaussian data: near .035
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert float((lse - exact_lse)[lse.isfinite()].abs().max()) < 0.03


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_no_plan_is_dense_attention(draw, impl):
    q, k, v = draw(1, 2, 70, 140, 64)
    out, lse = low_bit_attention(q, k, v, impl=impl)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert lse is None
    assert relative(out, exact) < 0.045


def exact_case():
    """Integers whose scores, weights and values eight bits hold exactly."""
    q, k = torch.zeros(2, 1, 1, 64, 64)
    q[..., :7] = torch.randint(-1, 2, (64, 7))
    k[..., :32, :7] = torch.randint(-1, 2, (32, 7))
    k[..., 32:, :] = -k[..., :32, :]  # a mean of zero
    q[..., 0], k[..., 0] = 1, torch.tensor([1.0, -1.0]).repeat_interleave(32)
    v = torch.randint(-7, 8, (1, 1, 64, 64)).float()
    v[..., 0, :] = 7
    return q, k, v


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_exact_where_eight_bits_are_enough(oracle, device, impl):
    q, k, v = exact_case()
    plan = dense_plan(64, 64, device=device)
    out, lse = low_bit_attention(q, k, v, plan, scale=math.log(2), return_lse=True, impl=impl)
    exact, exact_lse = oracle.attention(q, k, v, plan, scale=math.log(2))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    assert lse is not None
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_constant_added_to_keys_moves_the_log_sum_exp_alone(draw, device, impl):
    q, k, v = draw(1, 1, 64, 128, 32)
    constant = torch.randint(-8, 9, (32,)) / 4.0
    plan = dense_plan(64, 128, device=device)
    out, lse = low_bit_attention(q, k, v, plan, return_lse=True, impl=impl)
    moved, moved_lse = low_bit_attention(q, k + constant, v, plan, return_lse=True, impl=impl)
    assert relative(moved, out) < 2e-3  # the means differ by roundings, so a few integers do
    torch.testing.assert_close(moved_lse, lse + (q @ constant) * 32**-0.5, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 30.0, 300.0])
def test_an_offset_of_one_channel_of_keys_costs_nothing(oracle, draw, device, offset):
    q, k, v = draw(1, 1, 128, 512, 64)
    k[..., 3] += offset
    plan = dense_plan(128, 512, 128, device=device)
    out, _ = low_bit_reference(q, k, v, plan, scale=0.25)
    exact, _ = oracle.attention(q, k, v, plan, scale=0.25)
    assert relative(out, exact) < 0.06


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_many_small_weights_beside_a_large_one_keep_their_mass(device, impl):
    small = torch.rand(3000) * 1.5e-4 + 0.5e-4
    p = torch.cat([torch.ones(128), small])
    q, k, v = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 3128, 16), torch.zeros(1, 1, 3128, 16)
    q[..., 0], k[..., 0] = 1, p.log()
    v[..., :128, 0], v[..., 128:, 1] = 1, 1
    out, _ = low_bit_attention(
        q, k, v, dense_plan(16, 3128, 128, device=device), scale=1.0, impl=impl
    )
    share = float(small.sum() / p.sum())
    assert float(out[0, 0, 0, 1]) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_what_stands_behind_the_keys_has_no_influence(draw, device, impl):
    q, k, v = draw(1, 1, 64, 192, 32)
    plan = dense_plan(64, 129, device=device)
    out, lse = low_bit_attention(q, k[:, :, :129], v[:, :, :129], plan, return_lse=True, impl=impl)
    k[:, :, 129:], v[:, :, 129:] = 1e30, float("nan")
    again, lse_again = low_bit_attention(
        q, k[:, :, :129], v[:, :, :129], plan, return_lse=True, impl=impl
    )
    assert torch.equal(out, again)
    assert torch.equal(lse, lse_again)


def test_zeros_and_tiny_numbers_are_no_trouble(draw, device):
    q, k, v = draw(1, 1, 32, 100, 32)
    plan = dense_plan(32, 100, 32, device=device)
    zero, _ = low_bit_attention(torch.zeros_like(q), k, v, plan, impl="triton")
    assert relative(zero, v.mean(dim=2, keepdim=True).expand_as(q)) < 0.03
    tiny, lse = low_bit_attention(
        q * 1e-8, k * 1e-8, v * 1e-8, plan, return_lse=True, impl="triton"
    )
    assert relative(tiny, 1e-8 * v.mean(dim=2, keepdim=True).expand_as(q)) < 0.03
    assert lse is not None
    assert lse.isfinite().all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("blocks", [None, 9])
def test_stand_ins_take_part(oracle, draw, device, impl, blocks):
    q, k, v = draw(1, 2, 64, 300, 32)
    plan = oracle.plan(1, 2, 64, 300, 64, 64, kv_blocks=blocks, share=0.4, device=device)
    pooled = oracle.pooled(k, v, 64) if blocks is None else clusters_pooled(plan, k, v)
    plan = dataclasses.replace(plan, pooled=pooled)
    out, lse = low_bit_attention(q, k, v, plan, return_lse=True, impl=impl)
    q, k, v = (x.double() for x in (q, k, v))
    exact, exact_lse = reference_attention(q, k, v, plan, return_lse=True)
    assert relative(out, exact) < 0.045
    assert float((lse - exact_lse).abs().max()) < 0.03


def test_a_batch_may_share_its_means(draw, device):
    q, k, v = draw(2, 2, 16, 130, 64)
    mean_key, mean_value = torch.randn(2, 1, 2, 20, 64, device=device)
    pooled = Pooled(key=mean_key, value=mean_value, size=torch.ones(20, device=device))
    options = {"scale": 0.2, "key_block": None, "layout": "panels", "pooled": pooled}
    ours, same = (quantize(q, k, v, impl=impl, **options) for impl in ("triton", "reference"))
    assert ours.mean_key is not None
    assert same.mean_key is not None
    assert torch.equal(ours.mean_key, same.mean_key)
    assert not torch.equal(ours.mean_key[0], ours.mean_key[1])  # each has a scale of its own


def clusters_pooled(plan, k, v):
    """Means of the clusters of a plan."""
    key, value = (pool_ragged(x, plan.kv_offsets, impl="reference") for x in (k, v))
    return Pooled(key=key, value=value, size=plan.kv_sizes)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_queries_of_nearly_nothing_weigh_keys_alike(oracle, draw, device, impl):
    q, k, v = draw(1, 2, 64, 300, 32)
    plan = oracle.plan(1, 2, 64, 300, 64, 64, kv_blocks=9, share=0.4, device=device)
    for tiny in (0.0, 1e-30, 1e-9):
        out, _ = low_bit_attention(q * tiny, k, v, plan, impl=impl)
        exact, _ = oracle.attention(q * 0, k, v, plan)
        assert relative(out, exact) < 0.04


def test_bad_input(draw):
    q, k, v = draw(1, 1, 16, 16, 320)
    with pytest.raises(BadInputError, match="head_dim up to 256, got 320"):
        low_bit_attention(q, k, v)
    with pytest.raises(BadInputError, match="unknown impl 'cuda'"):
        low_bit_attention(q, k, v, impl="cuda")
    with pytest.raises(BadInputError, match="unknown impl 'cuda'"):
        quantize(q, k, v, scale=1.0, impl="cuda")
