"""The backward kernels by themselves; through the op they are tested in test_op.py."""

import dataclasses

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.backward import attention_backward, pooled_backward
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.transpose import transpose_plan

# batch, heads, q_len, kv_len, head_dim, q_block, kv_block
SHAPES = [
    (1, 1, 16, 16, 16, 16, 16),
    (2, 2, 75, 90, 24, 48, 16),
    (1, 2, 130, 65, 64, 128, 64),
    (2, 1, 33, 200, 40, 16, 256),
]


def forward(oracle, shape, device):
    q, k, v = oracle.qkv(*shape[:5], device=device)
    plan = oracle.plan(*shape[:4], *shape[5:], device=device)
    out, lse = reference_attention(q, k, v, plan, return_lse=True)
    return q, k, v, out, lse, plan


@pytest.mark.parametrize("impl", ["triton", "cpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_implementation_equals_the_reference(oracle, device, shape, impl):
    q, k, v, out, lse, plan = forward(oracle, shape, device)
    g = torch.randn_like(out)
    arguments = (g, q, k, v, out, lse, plan)
    got = attention_backward(*arguments, scale=shape[4] ** -0.5, impl=impl)
    expected = attention_backward(*arguments, scale=shape[4] ** -0.5, impl="reference")
    for mine, truth, leaf in zip(got, expected, (q, k, v), strict=True):
        assert mine.stride() == torch.empty_like(leaf).stride()
        oracle.assert_as_exact(mine, truth, torch.float32, times=100)


@pytest.mark.parametrize("impl", ["triton", "cpu"])
def test_keys_that_nobody_reads_get_a_gradient_of_zero_and_are_never_read(oracle, device, impl):
    q, k, v = oracle.qkv(1, 1, 32, 48, 16, device=device)
    keep = torch.tensor([[[[True, False, True], [False, False, True]]]], device=device)
    plan = BlockPlan.from_mask(keep, q_len=32, kv_len=48, q_block=16, kv_block=16)
    out, lse = reference_attention(q, k, v, plan, return_lse=True)
    k[:, :, 16:32] = v[:, :, 16:32] = float("nan")
    g = torch.randn_like(out)
    dq, dk, dv = attention_backward(g, q, k, v, out, lse, plan, scale=0.25, impl=impl)
    assert dq.isfinite().all()
    assert (dk[:, :, 16:32] == 0).all()
    assert (dv[:, :, 16:32] == 0).all()


@pytest.mark.parametrize("impl", ["triton", "cpu"])
def test_no_element_of_the_gradients_is_left_unwritten(oracle, device, monkeypatch, impl):
    q, k, v, out, lse, plan = forward(oracle, (1, 2, 75, 90, 24, 48, 16), device)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: empty_like(x, **kw).fill_(torch.nan))
    g = torch.randn(out.shape, device=device)
    for gradient in attention_backward(g, q, k, v, out, lse, plan, scale=0.2, impl=impl):
        assert gradient.isfinite().all()


def test_the_pooled_part_is_the_same_in_pieces(oracle, monkeypatch):
    q, k, v = oracle.qkv(1, 2, 60, 60, 8)
    plan = oracle.plan(1, 2, 60, 60, 16, 16)
    plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, 16))
    out, lse = reference_attention(q, k, v, plan, return_lse=True)
    g = torch.randn_like(out)
    whole = pooled_backward(g, q, out, lse, plan, scale=0.3)
    monkeypatch.setattr("vidsparse.kernels.backward.SCORES_AT_ONCE", 2 * 4 * 7)
    torch.testing.assert_close(pooled_backward(g, q, out, lse, plan, scale=0.3), whole)


@pytest.mark.parametrize("blocks", [{"q_blocks": 5}, {"q_blocks": 3, "kv_blocks": 9}])
@pytest.mark.parametrize("empty", [False, True])
def test_blocks_of_unequal_size_and_empty_ones(oracle, device, blocks, empty):
    q, k, v = oracle.qkv(2, 2, 75, 90, 24, device=device)
    plan = oracle.plan(2, 2, 75, 90, 48, 16, **blocks, empty=empty, device=device)
    out, lse = reference_attention(q, k, v, plan, return_lse=True)
    g, h = torch.randn_like(out), torch.randn_like(lse)
    got, expected = (
        attention_backward(g, q, k, v, out, lse, plan, scale=0.2, grad_lse=h, impl=impl)
        for impl in ("cpu", "reference")
    )
    for mine, truth in zip(got, expected, strict=True):
        oracle.assert_as_exact(mine, truth, torch.float32, times=100)


def test_an_unknown_implementation_is_refused(oracle):
    q, k, v = oracle.qkv(1, 1, 20, 20, 8)
    plan = oracle.plan(1, 1, 20, 20, 16, 16)
    with pytest.raises(BadInputError, match="unknown impl 'gpu': choose auto, triton, cpu or"):
        attention_backward(q, q, k, v, q, q[..., 0], plan, scale=1.0, impl="gpu")


def test_triton_refuses_unequal_blocks(oracle):
    q, k, v = oracle.qkv(1, 1, 20, 20, 8)
    plan = oracle.plan(1, 1, 20, 20, 16, 16, q_blocks=2)
    with pytest.raises(BadInputError, match="blocks of equal size"):
        attention_backward(q, q, k, v, q, q[..., 0], plan, scale=1.0, impl="triton")


@pytest.mark.parametrize("share", [(1, 1), (2, 3)])
def test_a_transposed_plan_lists_the_readers_of_each_key_block(oracle, share):
    plan = oracle.plan(*share, 70, 90, 16, 16)
    count, index = transpose_plan(plan)
    assert count.dtype == index.dtype == torch.int32
    mask = plan.to_block_mask()
    for b in range(share[0]):
        for h in range(share[1]):
            for n in range(plan.num_kv_blocks):
                listed = index[b, h, n, : int(count[b, h, n])].tolist()
                assert listed == mask[b, h, :, n].nonzero()[:, 0].tolist()
