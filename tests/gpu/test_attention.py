"""Attention at sizes that only a GPU can run: every engine in bf16, against float64."""

import dataclasses

import pytest
import torch

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.kmeans import kmeans
from vidsparse.kernels.planning.permute import permute_tokens, unpermute_tokens
from vidsparse.kernels.planning.pooling import pool_blocks
from vidsparse.kernels.planning.select import select_top_k
from vidsparse.kernels.validate import validated

pytestmark = pytest.mark.gpu


def qkv(batch, heads, q_len, kv_len, head_dim, dtype=torch.bfloat16, layout="bshd"):
    made = []
    for n in (q_len, kv_len, kv_len):
        if layout == "bshd":
            x = torch.randn(batch, n, heads, head_dim, device="cuda", dtype=dtype)
            made.append(x.transpose(1, 2))
        else:
            made.append(torch.randn(batch, heads, n, head_dim, device="cuda", dtype=dtype))
    return made


def random_plan(batch, heads, q_len, kv_len, q_block, kv_block, share=0.3):
    shape = (batch, heads, -(-q_len // q_block), -(-kv_len // kv_block))
    keep = torch.rand(shape, device="cuda") < share
    one = torch.randint(shape[-1], (*shape[:-1], 1), device="cuda")
    keep |= torch.zeros_like(keep).scatter_(-1, one, True)
    return BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=q_block, kv_block=kv_block)


def relative_error(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def exact_attention(q, k, v, plan, **keywords):
    q, k, v = (x.double() for x in (q, k, v))
    return reference_attention(q, k, v, plan, return_lse=True, **keywords)


def run_or_skip(engine, q, k, v, plan, **keywords):
    case = Case.of(q, k, v, plan, False)
    if reasons := ENGINES[engine].unsupported(case):
        pytest.skip("; ".join(reasons))
    return attention(q, k, v, plan, engine=engine, return_lse=True, **keywords)


@pytest.mark.parametrize("engine", ["triton", "flash", "flex"])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(("q_block", "kv_block"), [(128, 128), (128, 64), (64, 64), (256, 128)])
def test_large_ragged_plans(engine, head_dim, q_block, kv_block):
    q, k, v = qkv(2, 3, 1500, 2011, head_dim)
    plan = random_plan(2, 3, 1500, 2011, q_block, kv_block)
    out, lse = run_or_skip(engine, q, k, v, plan)
    exact, exact_lse = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < 5e-3
    assert float((lse - exact_lse).abs().max()) < 2e-2
    assert out.stride() == torch.empty_like(q).stride()


@pytest.mark.parametrize("head_dim", [16, 32, 40, 80, 128, 160, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_triton_takes_every_head_dim_dtype_and_layout(head_dim, dtype, layout):
    q, k, v = qkv(1, 2, 700, 900, head_dim, dtype, layout)
    plan = random_plan(1, 2, 700, 900, 128, 48)
    out, _ = run_or_skip("triton", q, k, v, plan)
    exact, _ = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("q_block", [64, 128, 192, 256, 48])
@pytest.mark.parametrize("kv_block", [16, 32, 48, 64, 80, 96, 128, 176, 256])
@pytest.mark.parametrize("empty", [False, True])
def test_triton_takes_every_block_size_and_empty_rows(q_block, kv_block, empty):
    q, k, v = qkv(3, 2, 900, 1301, 128)
    plan = random_plan(1, 2, 900, 1301, q_block, kv_block)
    if empty:
        plan.kv_count[:, :, ::3] = 0
    out, lse = run_or_skip("triton", q, k, v, plan)
    exact, exact_lse = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < 5e-3
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert (out[lse.isinf()] == 0).all()


@pytest.mark.parametrize("engine", ["triton", "flash", "flex"])
def test_density_one_equals_dense_at_the_wan_14b_length(engine):
    tokens = 75_600
    q, k, v = qkv(1, 2, tokens, tokens, 128)
    full = torch.ones(1, 1, 591, 591, dtype=torch.bool, device="cuda")
    plan = BlockPlan.from_mask(full, q_len=tokens, kv_len=tokens, q_block=128, kv_block=128)
    out, lse = run_or_skip(engine, q, k, v, plan)
    rows = torch.cat([torch.randint(tokens, (62,)), torch.tensor([0, tokens - 1])]).cuda()
    scores = q[:, :, rows].double() @ k.double().mT * 128**-0.5
    exact = scores.softmax(dim=-1) @ v.double()
    assert relative_error(out[:, :, rows], exact) < 5e-3
    assert float((lse[:, :, rows] - scores.logsumexp(dim=-1)).abs().max()) < 2e-2


def test_xformers_runs_per_frame_plans():
    q, k, v = qkv(2, 2, 1280, 1280, 64)
    frames = torch.block_diag(*[torch.ones(2, 2)] * 5).bool().cuda()[None, None]
    plan = BlockPlan.from_mask(frames, q_len=1280, kv_len=1280, q_block=128, kv_block=128)
    out, lse = run_or_skip("xformers", q, k, v, plan)
    exact, exact_lse = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < 5e-3
    assert float((lse - exact_lse).abs().max()) < 2e-2


@pytest.mark.parametrize("engine", ["triton", "flash", "flex"])
def test_pooled_stand_ins(engine):
    q, k, v = qkv(1, 4, 1000, 1000, 128)
    plan = random_plan(1, 4, 1000, 1000, 128, 128)
    key, value = (pool_blocks(x, 128) for x in (k, v))
    plan = dataclasses.replace(plan, pooled=Pooled(key=key, value=value, size=plan.kv_sizes))
    out, lse = run_or_skip(engine, q, k, v, plan)
    exact, exact_lse = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < 5e-3
    assert float((lse - exact_lse).abs().max()) < 2e-2


def test_clusters_of_unequal_size():
    q, k, v = qkv(1, 2, 3000, 3000, 64)
    of_q, of_k = kmeans(q, 9, iterations=3), kmeans(k, 40, iterations=3)
    q = permute_tokens(q, of_q.order)
    k, v = (permute_tokens(x, of_k.order) for x in (k, v))
    keep = torch.rand(1, 2, 9, 40, device="cuda") < 0.3
    keep[..., 0] = True
    plan = validated(BlockPlan.from_mask(
        keep, q_len=3000, kv_len=3000, q_block=128, kv_block=64,
        q_offsets=of_q.offsets, kv_offsets=of_k.offsets,
    ))  # fmt: skip
    out, lse = run_or_skip("triton", q, k, v, plan)
    exact, exact_lse = exact_attention(q, k, v, plan)
    assert relative_error(out, exact) < 5e-3
    assert float((lse - exact_lse).abs().max()) < 2e-2


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("engine", ["triton", "flash"])
def test_gradients(engine, head_dim):
    leaves = [x.requires_grad_() for x in qkv(1, 2, 700, 900, head_dim)]
    plan = random_plan(1, 2, 700, 900, 128, 128)
    q, k, v = leaves
    out, _ = run_or_skip(engine, q, k, v, plan)
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    q, k, v = exact_leaves
    exact, _ = reference_attention(q, k, v, plan)
    direction = torch.randn_like(exact)
    got = torch.autograd.grad(out, leaves, direction.to(out.dtype))
    expected = torch.autograd.grad(exact, exact_leaves, direction)
    for mine, truth in zip(got, expected, strict=True):
        assert relative_error(mine, truth) < 1e-2


def test_a_cuda_graph_replays_with_new_inputs():
    q, k, v = qkv(1, 2, 1000, 1000, 128)
    plan = random_plan(1, 2, 1000, 1000, 128, 128)
    attention(q, k, v, plan, engine="triton")  # compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v, plan, engine="triton")
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert relative_error(out, exact_attention(q, k, v, plan)[0]) < 5e-3


def test_the_call_makes_no_host_sync():
    q, k, v = qkv(1, 2, 1000, 1000, 128)
    scores = torch.randn(1, 2, 8, 8, device="cuda")
    count, index = select_top_k(scores, 3)
    plan = BlockPlan(
        kv_count=count, kv_index=index, q_len=1000, kv_len=1000, q_block=128, kv_block=128
    )
    attention(q, k, v, plan, engine="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        count, index = select_top_k(scores, 3)
        order = kmeans(q, 5, iterations=2, centroids=q[:, :, :5]).order
        unpermute_tokens(permute_tokens(q, order), order, like=q)
        attention(q, k, v, plan, engine="triton", return_lse=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_beyond_inputs_and_output_stays_under_100_mb_at_the_wan_14b_shape():
    q, k, v = qkv(1, 40, 75_600, 75_600, 128)
    scores = torch.randn(1, 40, 591, 591, device="cuda")
    count, index = select_top_k(scores, 148)
    plan = BlockPlan(
        kv_count=count, kv_index=index, q_len=75_600, kv_len=75_600, q_block=128, kv_block=128
    )
    attention(q, k, v, plan, engine="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - plan.nbytes()
    out = attention(q, k, v, plan, engine="triton")
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - out.numel() * out.element_size()
    assert extra < 100e6


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("q_block", "kv_block"), [(128, 128), (64, 64), (64, 128), (128, 64)])
def test_observed_blocks_in_bf16(head_dim, q_block, kv_block):
    q, k, v = qkv(2, 3, 1000, 1001, head_dim)
    plan = random_plan(1, 3, 1000, 1001, q_block, kv_block)
    count = plan.kv_count.long()[..., None]  # lists backwards: the ragged block comes first
    back = (count - 1 - torch.arange(plan.kv_index.shape[-1], device="cuda")) % count
    plan = dataclasses.replace(plan, kv_index=plan.kv_index.gather(-1, back))
    seen = attention(q, k, v, plan, observe=True, engine="triton")
    q, k, v = (x.float() for x in (q, k, v))
    truth = attention(q, k, v, plan, observe=True, engine="reference")
    used = torch.arange(plan.kv_index.shape[-1], device="cuda") < plan.kv_count[..., None]
    used = used.expand(seen.margin.shape)
    assert torch.equal(seen.margin.isinf()[used], truth.margin.isinf()[used])
    finite = used & truth.margin.isfinite()
    assert float((seen.margin - truth.margin)[finite].abs().max()) < 5e-2
    assert float((seen.lse - truth.lse).abs().max()) < 2e-2
    assert float((seen.out - truth.out).norm() / truth.out.norm()) < 1e-2


def test_compile_has_no_graph_break_with_inductor():
    q, k, v = qkv(1, 2, 1000, 1000, 128)
    plan = random_plan(1, 2, 1000, 1000, 128, 128)

    def layer(q, k, v):
        return attention(q * 2, k, v, plan).sin()

    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), layer(q, k, v))
