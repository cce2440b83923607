"""The cpu engine where the reference is easy to miss: empty rows, stand-ins, sizes of their own."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.kernels.engines.cpu import cpu_attention
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import Pooled

SCALE = 0.3


def assert_as_the_reference(q, k, v, plan, oracle):
    exact, exact_lse = reference_attention(q, k, v, plan, scale=SCALE, return_lse=True)
    out, lse = cpu_attention(q, k, v, plan, scale=SCALE, return_lse=True)
    alone, nothing = cpu_attention(q, k, v, plan, scale=SCALE)
    assert lse is not None
    assert nothing is None
    for ours in (out, alone):
        oracle.assert_as_exact(ours, exact, torch.float32, times=30)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    lse, exact_lse = (x.nan_to_num(0, 0, 0) for x in (lse, exact_lse))
    oracle.assert_as_exact(lse, exact_lse, torch.float32, times=30)


def with_sizes(plan, k, v, size, oracle):
    pooled = oracle.pooled(k, v, plan.kv_block)
    return dataclasses.replace(plan, pooled=Pooled(key=pooled.key, value=pooled.value, size=size))


@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (2, 1, 6), (1, 3, 6), (2, 3, 6)], ids=str)
def test_pooled_sizes_may_differ_by_batch_and_head(oracle, shape):
    q, k, v = oracle.qkv(2, 3, 70, 90, 16)
    size = torch.rand(shape) * 15 + 1
    plan = with_sizes(oracle.plan(2, 3, 70, 90, 16, 16), k, v, size, oracle)
    assert_as_the_reference(q, k, v, plan, oracle)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6)], ids=str)
def test_pooled_blocks_of_size_zero_take_no_part(oracle, shape):
    q, k, v = oracle.qkv(2, 3, 70, 90, 16)
    size = torch.full(shape, 16.0)
    size[..., 2:4] = 0
    plan = with_sizes(oracle.plan(2, 3, 70, 90, 16, 16), k, v, size, oracle)
    assert_as_the_reference(q, k, v, plan, oracle)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_empty_rows_and_pooled_stand_ins_equal_the_reference(oracle, data):
    draw = data.draw
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    q_len, kv_len = draw(st.integers(1, 70)), draw(st.integers(1, 90))
    block = 16 * draw(st.integers(1, 3))
    of = draw(st.sampled_from([1, batch])), heads
    plan = oracle.plan(*of, q_len, kv_len, 16, block, empty=draw(st.booleans()))
    q, k, v = oracle.qkv(batch, heads, q_len, kv_len, 16)
    shape = (batch, heads, plan.num_kv_blocks) if draw(st.booleans()) else (plan.num_kv_blocks,)
    if draw(st.booleans()):
        plan = with_sizes(plan, k, v, torch.rand(shape) * 15 + 1, oracle)
    assert_as_the_reference(q, k, v, plan, oracle)
