"""The reference against a softmax of the test's own, and against torch."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan


def qkv(batch, heads, q_len, kv_len, head_dim, dtype=torch.float64):
    return (torch.randn(batch, heads, n, head_dim, dtype=dtype) for n in (q_len, kv_len, kv_len))


@pytest.mark.parametrize("with_pooled", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(64, 64), (50, 77), (1, 17)])
@pytest.mark.parametrize("plan_batch", [1, 2])
def test_reference_equals_a_float64_softmax_over_the_lists(
    oracle, q_len, kv_len, plan_batch, with_pooled
):
    q, k, v = qkv(2, 3, q_len, kv_len, 8)
    plan = oracle.plan(plan_batch, 1 if plan_batch == 1 else 3, q_len, kv_len, 16, 32)
    if with_pooled:
        plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, 32))
    ours = reference_attention(q, k, v, plan, return_lse=True)
    torch.testing.assert_close(ours, oracle.attention(q, k, v, plan), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("q_blocks", "kv_blocks"), [(None, None), (6, None), (None, 9), (6, 9)])
def test_reference_follows_unequal_blocks_and_empty_rows(oracle, empty, q_blocks, kv_blocks):
    q, k, v = qkv(2, 3, 50, 77, 8)
    plan = oracle.plan(2, 3, 50, 77, 16, 16, q_blocks=q_blocks, kv_blocks=kv_blocks, empty=empty)
    ours = reference_attention(q, k, v, plan, return_lse=True)
    expected = oracle.attention(q, k, v, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_a_row_without_keys_is_zero_and_its_log_sum_exp_minus_infinity():
    q, k, v = qkv(1, 1, 16, 32, 4)
    plan = BlockPlan.from_mask(
        torch.tensor([[[[False, False]]]]), q_len=16, kv_len=32, q_block=16, kv_block=16
    )
    out, lse = reference_attention(q, k, v, plan, return_lse=True)
    assert lse is not None
    assert (out == 0).all()
    assert (lse == float("-inf")).all()


def test_reference_takes_a_scale_of_the_callers():
    q, k, v = qkv(1, 1, 20, 20, 4)
    plan = BlockPlan.from_mask(
        torch.ones(1, 1, 2, 2).bool(), q_len=20, kv_len=20, q_block=16, kv_block=16
    )
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.1)
    torch.testing.assert_close(reference_attention(q, k, v, plan, scale=0.1)[0], expected)


def test_reference_under_a_full_plan_equals_torch():
    q, k, v = qkv(2, 2, 45, 61, 16)
    plan = BlockPlan.from_mask(
        torch.ones(1, 1, 3, 4).bool(), q_len=45, kv_len=61, q_block=16, kv_block=16
    )
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(reference_attention(q, k, v, plan)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reference_computes_in_float32_and_answers_in_the_dtype_of_q(oracle, dtype):
    q, k, v = qkv(1, 2, 40, 40, 16, dtype)
    plan = oracle.plan(1, 2, 40, 40, 16, 16)
    ours, exact = reference_attention(q, k, v, plan)[0], oracle.attention(q, k, v, plan)[0]
    assert ours.dtype == dtype
    rounded = exact.float().to(dtype)
    band = torch.finfo(dtype).eps * exact.abs().amax()
    assert (ours.double() - rounded.double()).abs().max() <= (
        1 if dtype.itemsize == 2 else 8
    ) * band
