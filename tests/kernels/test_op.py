"""The custom op: compile, autograd, autocast and inference mode."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import Pooled

ENGINES = ["cpu", "triton"]


def with_pooled(plan, batch, heads, head_dim, device):
    shape = (batch, heads, plan.num_kv_blocks, head_dim)
    key, value = (torch.randn(shape, device=device).requires_grad_() for _ in range(2))
    return dataclasses.replace(plan, pooled=Pooled(key=key, value=value, size=plan.kv_sizes))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_equal_those_of_the_reference_in_float64(oracle, device, engine, data):
    draw = data.draw
    batch, heads, head_dim = (draw(st.integers(1, n)) for n in (2, 2, 30))
    q_len, kv_len = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    blocks = [16 * draw(st.integers(1, 4)) for _ in range(2)]
    plan = oracle.plan(1, heads, q_len, kv_len, *blocks, empty=draw(st.booleans()), device=device)
    if draw(st.booleans()):
        plan = with_pooled(plan, batch, heads, head_dim, device)
    leaves = [
        x.requires_grad_() for x in oracle.qkv(batch, heads, q_len, kv_len, head_dim, device=device)
    ]
    means = [] if plan.pooled is None else [plan.pooled.key, plan.pooled.value]
    q, k, v = leaves
    ours = attention(q, k, v, plan, scale=0.3, engine=engine)
    exact_leaves = [x.detach().double().requires_grad_() for x in (*leaves, *means)]
    exact_plan = plan
    if plan.pooled is not None:
        pooled = Pooled(key=exact_leaves[3], value=exact_leaves[4], size=plan.pooled.size)
        exact_plan = dataclasses.replace(plan, pooled=pooled)
    q, k, v = exact_leaves[:3]
    exact, _ = reference_attention(q, k, v, exact_plan, scale=0.3)
    direction = torch.randn_like(exact)
    got = torch.autograd.grad(ours, (*leaves, *means), direction.float())
    expected = torch.autograd.grad(exact, exact_leaves, direction)
    for mine, truth, leaf in zip(got, expected, (*leaves, *means), strict=True):
        assert mine.shape == leaf.shape
        oracle.assert_as_exact(mine, truth, torch.float32, times=200)


@pytest.mark.parametrize("unequal", [False, True])
def test_gradients_flow_through_blocks_of_unequal_size(oracle, device, unequal):
    plan = oracle.plan(1, 2, 40, 50, 16, 16, q_blocks=3 if unequal else None,
                       kv_blocks=4 if unequal else None, device=device)  # fmt: skip
    leaves = [x.requires_grad_() for x in oracle.qkv(1, 2, 40, 50, 8, device=device)]
    q, k, v = leaves
    ours = attention(q, k, v, plan, engine="triton")
    truth, _ = reference_attention(q, k, v, plan)
    got = torch.autograd.grad(ours.square().sum(), leaves)
    expected = torch.autograd.grad(truth.square().sum(), leaves)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_op_passes_torchs_own_checks(oracle):
    q, k, v = (x.requires_grad_() for x in oracle.qkv(2, 2, 40, 50, 8))
    plan = oracle.plan(1, 2, 40, 50, 16, 16)
    arguments = (
        q, k, v, plan.kv_count, plan.kv_index, *[None] * 8,
        16, 16, 0.3, True, "cpu", False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.vidsparse.attend.default, arguments)


@pytest.mark.parametrize("engine", ENGINES)
def test_compile_sees_no_graph_break_forward_and_backward(oracle, device, engine):
    q, k, v = (x.requires_grad_() for x in oracle.qkv(1, 2, 40, 40, 8, device=device))
    plan = oracle.plan(1, 2, 40, 40, 16, 16, device=device)

    def layer(q, k, v):
        return attention(2 * q, k, v, plan, engine=engine).sin()

    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(q, k, v), layer(q, k, v))
    got = torch.autograd.grad(compiled(q, k, v).sum(), (q, k, v))
    torch.testing.assert_close(got, torch.autograd.grad(layer(q, k, v).sum(), (q, k, v)))


def test_compile_does_not_recompile_for_another_plan_of_the_same_shape(oracle, device):
    q, k, v = oracle.qkv(1, 2, 40, 40, 8, device=device)
    counter = CompileCounter()
    compiled = torch.compile(
        lambda plan: attention(q, k, v, plan, engine="cpu"), fullgraph=True, backend=counter
    )
    for _ in range(3):
        plan = oracle.plan(1, 2, 40, 40, 16, 16, device=device)
        torch.testing.assert_close(compiled(plan), attention(q, k, v, plan, engine="cpu"))
    assert counter.frame_count == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_inference_mode_gives_the_same(oracle, device, engine):
    q, k, v = oracle.qkv(1, 2, 40, 40, 8, device=device)
    plan = oracle.plan(1, 2, 40, 40, 16, 16, device=device)
    expected = attention(q, k, v, plan, engine=engine)
    with torch.inference_mode():
        assert torch.equal(attention(q, k, v, plan, engine=engine), expected)


def test_autocast_casts_as_torchs_attention_does(oracle, device):
    q, k, v = oracle.qkv(1, 2, 40, 40, 8, device=device)
    plan = oracle.plan(1, 2, 40, 40, 16, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        out = attention(q, k.bfloat16(), v, plan, engine="cpu")
    assert out.dtype == torch.bfloat16
    q, k, v = (x.bfloat16() for x in (q, k, v))
    assert torch.equal(out, attention(q, k, v, plan, engine="cpu"))


def test_the_log_sum_exp_is_returned_only_when_asked_for(oracle):
    q, k, v = oracle.qkv(1, 2, 40, 40, 8)
    plan = oracle.plan(1, 2, 40, 40, 16, 16)
    assert isinstance(attention(q, k, v, plan), torch.Tensor)
    out, lse = attention(q, k, v, plan, return_lse=True)
    assert lse.shape == (1, 2, 40)
    assert lse.is_contiguous()  # as torch.compile was told
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out, attention(q, k, v, plan))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stand_ins", [False, True])
def test_the_log_sum_exp_has_a_gradient(oracle, device, engine, stand_ins):
    leaves = [x.requires_grad_() for x in oracle.qkv(1, 2, 40, 50, 8, device=device)]
    plan = oracle.plan(1, 2, 40, 50, 16, 16, device=device)
    if stand_ins:
        plan = with_pooled(plan, 1, 2, 8, device)
    q, k, v = leaves
    _, lse = attention(q, k, v, plan, return_lse=True, engine=engine)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    q, k, v = wide
    _, truth = reference_attention(q, k, v, plan, return_lse=True)
    weight = torch.randn_like(lse)
    got = torch.autograd.grad((lse * weight).sum(), leaves[:2])
    expected = torch.autograd.grad((truth * weight).sum(), wide[:2])
    for mine, exact in zip(got, expected, strict=True):
        assert exact.abs().max() > 0.1
        oracle.assert_as_exact(mine, exact, torch.float32, times=200)
