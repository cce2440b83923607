"""Blocks of unequal size in the Hopper kernels that pack their keys: against float64.

In bf16, and in eight bits also against what is rounded in the same way.
"""

import dataclasses
import itertools

import pytest
import torch

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.low_bit import attend_quantized, quantize
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.pooling import pool_ragged
from vidsparse.kernels.triton import block_sparse, low_bit_packed, packed
from vidsparse.kernels.validate import validated

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def hopper_only():
    if len(block_sparse._hopper_kernels(torch.empty(1, device="cuda"))) == 0:
        pytest.skip("needs a Hopper GPU and a Triton with Gluon")


def offsets(batch, heads, length, blocks):
    """Blocks of very different size, some of them empty."""
    size = torch.randn(batch, heads, blocks, device="cuda").exp()
    size *= torch.rand_like(size) > 0.1
    size[..., 0] += 0.1
    ends = (size.cumsum(-1) / size.sum(-1, keepdim=True) * length).round().int()
    ends[..., -1] = length
    return torch.nn.functional.pad(ends, (1, 0))


def clusters(batch, heads, q_len, kv_len, q_blocks, kv_blocks, share=0.3, shared=False):
    of = (1, 1) if shared else (batch, heads)
    keep = torch.rand(*of, q_blocks, kv_blocks, device="cuda") < share
    one = torch.randint(kv_blocks, (*keep.shape[:-1], 1), device="cuda")
    keep |= torch.zeros_like(keep).scatter_(-1, one, True)
    return validated(BlockPlan.from_mask(
        keep, q_len=q_len, kv_len=kv_len, q_block=128, kv_block=128,
        q_offsets=offsets(*of, q_len, q_blocks), kv_offsets=offsets(*of, kv_len, kv_blocks),
    ))  # fmt: skip


def qkv(batch, heads, q_len, kv_len, head_dim, dtype=torch.bfloat16):
    shapes = ((batch, n, heads, head_dim) for n in (q_len, kv_len, kv_len))
    return [torch.randn(s, device="cuda", dtype=dtype).transpose(1, 2) for s in shapes]


def assert_right(q, k, v, plan, error=5e-3, validate=True):
    out, lse = attention(q, k, v, plan, engine="triton", return_lse=True, validate=validate)
    exact, exact_lse = reference_attention(
        q.double(), k.double(), v.double(), plan, return_lse=True
    )
    assert float((out.double() - exact).norm()) < error * float(exact.norm()) + 1e-9
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    finite = lse.isfinite()
    assert float((lse - exact_lse)[finite].abs().sum()) <= 2e-2 * int(finite.sum())
    assert (out[~finite] == 0).all()
    assert out.stride() == torch.empty_like(q).stride()


@pytest.mark.parametrize("head_dim", [40, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("q_blocks", "kv_blocks"), [(9, 40), (60, 700), (2, 3), (1, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_clusters_of_any_size(head_dim, dtype, q_blocks, kv_blocks, shared):
    q, k, v = qkv(2, 3, 1511, 2011, head_dim, dtype)
    assert_right(q, k, v, clusters(2, 3, 1511, 2011, q_blocks, kv_blocks, shared=shared))


@pytest.mark.parametrize(("q_len", "kv_len"), itertools.product([1, 63, 129], [1, 17, 127, 1009]))
def test_short_sequences_of_prime_length(q_len, kv_len):
    q, k, v = qkv(1, 2, q_len, kv_len, 128)
    assert_right(q, k, v, clusters(1, 2, q_len, kv_len, 3, 5))


def test_rows_that_read_nothing():
    q, k, v = qkv(3, 2, 700, 2011, 128)
    plan = clusters(3, 2, 700, 2011, 7, 30)
    plan.kv_count[:, :, ::3] = 0
    assert_right(q, k, v, plan, validate=False)


@pytest.mark.parametrize("side", ["q_offsets", "kv_offsets"])
def test_blocks_of_unequal_size_on_one_side_alone(side):
    q, k, v = qkv(2, 3, 1511, 2011, 128)
    plan = clusters(2, 3, 1511, 2011, 12, 16)
    assert_right(q, k, v, dataclasses.replace(plan, **{side: None}))


def test_more_chunks_than_two_bytes_can_number():
    q, k, v = qkv(1, 1, 200, 2000, 128)
    assert_right(q, k, v, clusters(1, 1, 200, 2000, 3, 66_000))


def with_means(plan, heads, head_dim, dtype=torch.bfloat16):
    shape = (2, 1, heads, plan.num_kv_blocks, head_dim)
    means = torch.randn(shape, device="cuda", dtype=dtype)
    pooled = Pooled(key=means[0], value=means[1], size=plan.kv_sizes)
    return dataclasses.replace(plan, pooled=pooled)


@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("kv_blocks", [5, 127, 128, 300])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shared", [False, True])
def test_stand_ins(head_dim, kv_blocks, share, shared):
    q, k, v = qkv(1, 4, 1000, 1100, head_dim)
    plan = clusters(1, 4, 1000, 1100, 8, kv_blocks, share, shared)
    assert packed.refuses(q, k, v, plan) is None
    assert_right(q, k, v, with_means(plan, 4, head_dim))


def test_stand_ins_of_rows_that_read_nothing_else():
    q, k, v = qkv(1, 4, 1000, 1100, 128)
    plan = with_means(clusters(1, 4, 1000, 1100, 8, 50), 4, 128)
    plan.kv_count[:, :, ::3] = 0
    assert_right(1000 * q, k, v, plan, validate=False)  # far below zero too


@pytest.mark.parametrize(("head_dim", "dtype"), [(160, torch.bfloat16), (64, torch.float32)])
def test_what_the_packed_kernel_refuses_runs_elsewhere(head_dim, dtype):
    q, k, v = qkv(1, 2, 500, 700, head_dim, dtype)
    assert_right(q, k, v, clusters(1, 2, 500, 700, 5, 60))


def test_a_cuda_graph_replays_with_new_inputs_and_without_a_host_sync():
    q, k, v = qkv(1, 2, 1000, 1000, 128)
    plan = clusters(1, 2, 1000, 1000, 6, 40)
    attention(q, k, v, plan, engine="triton")  # compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v, plan, engine="triton")
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    exact, _ = reference_attention(q.double(), k.double(), v.double(), plan)
    assert float((out.double() - exact).norm() / exact.norm()) < 5e-3


def test_memory_beyond_inputs_and_output_stays_under_180_mb_at_the_wan_14b_shape():
    tokens = 75_600
    q, k, v = qkv(1, 40, tokens, tokens, 128)
    plan = clusters(1, 40, tokens, tokens, 200, 1000, share=0.2)
    attention(q, k, v, plan, engine="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attention(q, k, v, plan, engine="triton")
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - out.numel() * out.element_size()
    assert extra < 180e6  # an int32 for each chunk that a row could list


def relative(ours, exact):
    return float((ours.double() - exact.double()).norm() / (exact.double().norm() + 1e-9))


def assert_right_in_eight_bits(q, k, v, plan, share=1.05):
    assert low_bit_packed.refuses(q, plan) is None
    out, lse = low_bit_attention(q, k, v, plan, return_lse=True)
    x = quantize(q, k, v, scale=q.shape[-1] ** -0.5, key_block=None, pooled=plan.pooled)
    same, same_lse = attend_quantized(x, plan, keys=128, dtype=torch.float32)
    q, k, v = (y.double() for y in (q, k, v))
    exact, exact_lse = reference_attention(q, k, v, plan, return_lse=True)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    seen = lse.isfinite()
    assert (out[~seen] == 0).all()
    assert relative(out, same) < 0.025  # tiles are cut elsewhere, so weights round elsewhere
    assert relative(out, exact) < share * relative(same, exact) + 2e-3
    if seen.any():
        assert float((lse - same_lse)[seen].abs().max()) < 2e-3
    assert out.stride() == torch.empty_like(q).stride()


@pytest.mark.parametrize("head_dim", [48, 64, 96, 128])
@pytest.mark.parametrize(("q_blocks", "kv_blocks"), [(9, 40), (60, 700), (2, 3), (1, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_eight_bits_and_clusters_of_any_size(head_dim, q_blocks, kv_blocks, shared):
    q, k, v = qkv(2, 3, 1511, 2011, head_dim)
    plan = clusters(2, 3, 1511, 2011, q_blocks, kv_blocks, shared=shared)
    assert_right_in_eight_bits(q, k, v, plan)


@pytest.mark.parametrize(("q_len", "kv_len"), itertools.product([1, 63, 129], [1, 17, 127, 1009]))
def test_eight_bits_and_short_sequences(q_len, kv_len):
    q, k, v = qkv(1, 2, q_len, kv_len, 128)
    assert_right_in_eight_bits(q, k, v, clusters(1, 2, q_len, kv_len, 3, 5), share=1.3)


@pytest.mark.parametrize("means", [False, True])
def test_eight_bits_and_rows_that_read_nothing(means):
    q, k, v = qkv(3, 2, 700, 2011, 128)
    plan = clusters(3, 2, 700, 2011, 7, 300)
    plan = means_of(plan, k, v) if means else plan
    plan.kv_count[:, :, ::3] = 0
    assert_right_in_eight_bits(q, k, v, plan)


@pytest.mark.parametrize("side", ["q_offsets", "kv_offsets"])
def test_eight_bits_and_blocks_of_unequal_size_on_one_side(side):
    q, k, v = qkv(2, 3, 1511, 2011, 128)
    plan = clusters(2, 3, 1511, 2011, 12, 16)
    assert_right_in_eight_bits(q, k, v, dataclasses.replace(plan, **{side: None}))


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_quantising_pass_in_panels(means, head_dim):
    q, k, v = qkv(1, 3, 1000, 1301, head_dim)
    plan = clusters(1, 3, 1000, 1301, 5, 40)
    pooled = means_of(plan, k, v).pooled if means else None
    ours, same = (
        quantize(q, k, v, scale=0.2, key_block=None, layout="panels", pooled=pooled, impl=impl)
        for impl in ("triton", "reference")
    )
    for name in ("query", "key", "value", *(["mean_key", "mean_value"] if means else [])):
        mine, theirs = getattr(ours, name), getattr(same, name)
        if mine.dtype == torch.int8:  # ties and the last bits of means go either way
            differ = (mine.int() - theirs.int()).abs()
            assert int(differ.max()) <= 1
            assert float(differ.float().mean()) < 5e-3
        else:
            assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    for name in ("query_scale", "shift", "key_scale", "value_scale"):
        torch.testing.assert_close(getattr(ours, name), getattr(same, name), rtol=1e-4, atol=1e-5)


def means_of(plan, k, v):
    """The plan with the means of its own clusters."""
    key, value = (pool_ragged(x, plan.kv_offsets).to(x.dtype) for x in (k, v))
    return dataclasses.replace(plan, pooled=Pooled(key=key, value=value, size=plan.kv_sizes))


@pytest.mark.parametrize("head_dim", [48, 64, 128])
@pytest.mark.parametrize("kv_blocks", [5, 127, 128, 300])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shared", [False, True])
def test_eight_bits_and_stand_ins(head_dim, kv_blocks, share, shared):
    q, k, v = qkv(1, 4, 1000, 1100, head_dim)
    k = k + 3  # what all keys have in common is taken off the means too
    plan = means_of(clusters(1, 4, 1000, 1100, 8, kv_blocks, share, shared), k, v)
    assert_right_in_eight_bits(q, k, v, plan)


@pytest.mark.parametrize("means", [False, True])
def test_eight_bits_twice_the_same_and_without_a_host_sync(means):
    q, k, v = qkv(1, 4, 5000, 5000, 128)
    plan = clusters(1, 4, 5000, 5000, 30, 100)
    plan = means_of(plan, k, v) if means else plan
    first, _ = low_bit_attention(q, k, v, plan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [low_bit_attention(q, k, v, plan)[0] for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, first) for x in again)


def test_eight_bits_and_queries_of_nothing():
    q, k, v = qkv(1, 2, 500, 900, 128)
    plan = clusters(1, 2, 500, 900, 5, 40)
    for tiny in (0.0, 1e-20, 1e-6):
        out, _ = low_bit_attention(q * tiny, k, v, plan)
        exact, _ = reference_attention(q.double() * 0, k.double(), v.double(), plan)
        assert relative(out, exact) < 0.03


def test_eight_bits_at_the_wan_14b_length():
    tokens = 75_600
    q, k, v = qkv(1, 2, tokens, tokens, 128)
    plan = clusters(1, 2, tokens, tokens, 200, 1000, share=0.2)
    out, _ = low_bit_attention(q, k, v, plan)
    assert relative(out, attention(q, k, v, plan, engine="triton")) < 0.05
