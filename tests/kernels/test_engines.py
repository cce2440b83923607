"""Every engine against the float64 oracle, and what no engine may do."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import ENGINES, attention, choose_engine
from vidsparse.kernels.cpu import cpu_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.reference import reference_attention

# batch, heads, q_len, kv_len, head_dim, q_block, kv_block
SHAPES = [
    (1, 1, 16, 16, 8, 16, 16),
    (1, 3, 100, 100, 24, 16, 16),
    (2, 2, 129, 129, 64, 64, 64),
    (3, 1, 65, 65, 80, 64, 64),
    (2, 3, 300, 300, 12, 128, 128),
    (1, 2, 70, 150, 40, 16, 64),
    (2, 1, 200, 33, 16, 64, 16),
    (1, 1, 5, 7, 8, 16, 16),
]
ERROR = 2  # times the error of torch's own attention in the same dtype


def qkv(shape, dtype=torch.float32):
    """Views of ``(batch, seq, heads, head_dim)``, as diffusers has them: never contiguous."""
    batch, heads, q_len, kv_len, head_dim, *_ = shape
    lengths = (q_len, kv_len, kv_len)
    return (torch.randn(batch, n, heads, head_dim).to(dtype).transpose(1, 2) for n in lengths)


def torch_attention(q, k, v, plan):
    """Torch's own attention under the same plan, in the same dtype: the yardstick."""
    mask = torch.zeros(plan.to_dense_mask().shape, dtype=q.dtype)
    mask.masked_fill_(~plan.to_dense_mask(), float("-inf"))
    if plan.pooled is not None:
        rows = plan.to_block_mask().repeat_interleave(plan.q_block, -2)[..., : plan.q_len, :]
        extra = plan.pooled.size.log().to(q.dtype).expand(rows.shape).masked_fill(rows, -torch.inf)
        mask = torch.cat([mask, extra], dim=-1)
        k = torch.cat([k, plan.pooled.key.to(k.dtype)], dim=2)
        v = torch.cat([v, plan.pooled.value.to(v.dtype)], dim=2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def assert_as_exact_as_torch(ours, q, k, v, plan, oracle):
    exact = oracle.attention(q, k, v, plan)
    band = torch.finfo(q.dtype).eps * float(exact.abs().max())
    allowed = ERROR * float((torch_attention(q, k, v, plan).double() - exact).abs().max()) + band
    assert float((ours.double() - exact).abs().max()) <= allowed


@pytest.mark.parametrize("with_pooled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_engine_is_as_exact_as_torch_on_awkward_shapes(oracle, shape, dtype, with_pooled):
    q, k, v = qkv(shape, dtype)
    plan = oracle.plan(*shape[:4], *shape[5:])
    if with_pooled:
        plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, plan.kv_block))
    ours = cpu_attention(q, k, v, plan)
    assert ours.dtype == dtype
    assert_as_exact_as_torch(ours, q, k, v, plan, oracle)


@pytest.mark.parametrize("plan_batch", [1, 2])
@pytest.mark.parametrize("plan_heads", [1, 3])
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_plan_of_one_is_shared_by_all_batches_and_heads(oracle, engine, plan_batch, plan_heads):
    shape = (2, 3, 90, 90, 16, 16, 16)
    q, k, v = qkv(shape)
    plan = oracle.plan(plan_batch, plan_heads, *shape[2:4], *shape[5:])
    ours = attention(q, k, v, plan, engine=engine)
    assert_as_exact_as_torch(ours, q, k, v, plan, oracle)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_short_tail_kept_by_some_rows_only_is_read_by_those(oracle, engine):
    q, k, v = qkv((1, 1, 70, 70, 16))
    keep = torch.zeros(1, 1, 5, 5).bool()
    keep[..., [0, 1, 2, 3, 4], [0, 4, 2, 4, 4]] = True  # three rows keep nothing but the tail
    keep[..., 3, 1] = True
    plan = BlockPlan.from_mask(keep, q_len=70, kv_len=70, q_block=16, kv_block=16)
    assert_as_exact_as_torch(attention(q, k, v, plan, engine=engine), q, k, v, plan, oracle)


def test_more_rows_than_fit_one_batch_are_computed_too(oracle, monkeypatch):
    shape = (1, 2, 500, 500, 16, 16, 16)
    q, k, v = qkv(shape)
    plan = oracle.plan(*shape[:4], *shape[5:])
    monkeypatch.setattr("vidsparse.kernels.cpu.CPU_TOKENS", 300)
    assert_as_exact_as_torch(cpu_attention(q, k, v, plan), q, k, v, plan, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_full_plan_is_bit_equal_to_torch(dtype):
    q, k, v = qkv((2, 2, 100, 100, 24), dtype)
    full = torch.ones(1, 1, 7, 7).bool()
    plan = BlockPlan.from_mask(full, q_len=100, kv_len=100, q_block=16, kv_block=16)
    assert torch.equal(cpu_attention(q, k, v, plan), F.scaled_dot_product_attention(q, k, v))


def test_keys_that_nobody_keeps_are_never_read():
    q, k, v = qkv((1, 2, 90, 90, 16))
    keep = torch.eye(6).bool().expand(1, 1, 6, 6).clone()
    keep[..., 1, :] = keep[..., :, 1] = False
    keep[..., 1, 0] = True
    plan = BlockPlan.from_mask(keep, q_len=90, kv_len=90, q_block=16, kv_block=16)
    clean = cpu_attention(q, k, v, plan)
    k[:, :, 16:32] = v[:, :, 16:32] = float("nan")
    assert torch.equal(cpu_attention(q, k, v, plan), clean)


def test_no_element_of_the_output_is_left_unwritten(oracle, monkeypatch):
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(float("nan")))
    q, k, v = qkv((2, 2, 77, 77, 8))
    assert cpu_attention(q, k, v, oracle.plan(2, 2, 77, 77, 16, 16)).isfinite().all()


@pytest.mark.parametrize("seq", [96, 90])
def test_engines_agree_when_all_but_the_diagonal_is_pooled(oracle, seq):
    q, k, v = qkv((1, 2, seq, seq, 16))
    diagonal = torch.eye(6).bool().expand(1, 1, 6, 6)
    plan = BlockPlan.from_mask(diagonal, q_len=seq, kv_len=seq, q_block=16, kv_block=16)
    plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, 16))
    torch.testing.assert_close(cpu_attention(q, k, v, plan), reference_attention(q, k, v, plan))
    assert_as_exact_as_torch(cpu_attention(q, k, v, plan), q, k, v, plan, oracle)


def test_gradients_flow_through_the_cpu_engine(oracle):
    q, k, v = (x.requires_grad_() for x in qkv((1, 2, 50, 50, 8)))
    plan = oracle.plan(1, 2, 50, 50, 16, 16)
    ours = torch.autograd.grad(cpu_attention(q, k, v, plan).square().sum(), (q, k, v))
    truth = torch.autograd.grad(reference_attention(q, k, v, plan).square().sum(), (q, k, v))
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_engine_takes_a_scale(oracle, engine):
    q, k, v = qkv((1, 1, 40, 40, 8))
    plan = oracle.plan(1, 1, 40, 40, 16, 16)
    ours = attention(q, k, v, plan, scale=0.05, engine=engine)
    torch.testing.assert_close(ours.double(), oracle.attention(q, k, v, plan, scale=0.05))


def test_an_unknown_engine_is_refused_with_the_names_there_are(oracle):
    q, k, v = qkv((1, 1, 16, 16, 8))
    with pytest.raises(BadInputError, match="unknown engine 'warp': choose auto, cpu, reference"):
        attention(q, k, v, oracle.plan(1, 1, 16, 16, 16, 16), engine="warp")


@pytest.mark.parametrize("lengths", [(33, 32), (32, 33)])
def test_a_plan_for_other_lengths_is_refused(oracle, lengths):
    q, k, v = qkv((1, 1, 32, 32, 8))
    with pytest.raises(BadInputError, match="got 32, 32 and 32: make a plan for these tensors"):
        attention(q, k, v, oracle.plan(1, 1, *lengths, 16, 16))


def test_keys_and_values_of_two_lengths_are_refused(oracle):
    q, k, v = qkv((1, 1, 32, 32, 8))
    with pytest.raises(BadInputError, match="got 32, 32 and 31"):
        attention(q, k, v[:, :, :31], oracle.plan(1, 1, 32, 32, 16, 16))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_automatic_choice_is_an_engine_and_says_why(device):
    choice = choose_engine(device)
    assert choice.engine in ENGINES
    assert choice.why
