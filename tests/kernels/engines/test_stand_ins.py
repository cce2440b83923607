"""Pooled stand-ins after any engine, and the rescale that needs no kernel."""

import dataclasses

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.stand_ins import add_skipped
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.rescale import rescale


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("unequal", [False, True])
def test_continuing_the_softmax_equals_one_softmax_over_everything(oracle, device, impl, unequal):
    q, k, v = oracle.qkv(2, 2, 75, 90, 24, device=device)
    blocks = {"q_blocks": 5, "kv_blocks": 70} if unequal else {}
    plan = oracle.plan(1, 2, 75, 90, 32, 16, empty=True, device=device, **blocks)
    shape = (2, 2, plan.num_kv_blocks, 24)
    means = [torch.randn(shape, device=device) for _ in range(2)]
    pooled = Pooled(key=means[0], value=means[1], size=plan.kv_sizes)
    whole = dataclasses.replace(plan, pooled=pooled)
    out, lse = reference_attention(q, k, v, plan, scale=0.3, return_lse=True)
    got = add_skipped(q, out, lse, whole, scale=0.3, impl=impl)
    exact = reference_attention(
        q.double(), k.double(), v.double(), whole, scale=0.3, return_lse=True
    )
    for mine, truth in zip(got, exact, strict=True):
        finite = truth.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        oracle.assert_as_exact(mine[finite], truth[finite], torch.float32, times=30)


def test_a_plan_without_pooled_blocks_is_refused(oracle):
    q, _, _ = oracle.qkv(1, 1, 16, 16, 8)
    with pytest.raises(BadInputError, match="the plan has no pooled blocks"):
        add_skipped(q, q, q[..., 0], oracle.plan(1, 1, 16, 16, 16, 16), scale=1.0)


def test_rescale_weighs_the_exact_part_by_its_share_of_the_mass():
    keep = torch.tensor([[[[True, False, False]]]])
    plan = BlockPlan.from_mask(keep, q_len=2, kv_len=6, q_block=2, kv_block=2)
    out = torch.tensor([[[[1.0], [2.0]]]])
    mass = torch.tensor([[[[0.5, 0.3, 0.2]]]])
    value = torch.tensor([[[[9.0], [10.0], [20.0]]]])
    by_hand = [0.5 * 1 + 0.3 * 10 + 0.2 * 20, 0.5 * 2 + 0.3 * 10 + 0.2 * 20]
    assert rescale(out, plan, mass, value).flatten().tolist() == pytest.approx(by_hand)
    only = torch.tensor([[[[False, True, False]]]])
    by_hand = [0.7 * 1 + 0.3 * 10, 0.7 * 2 + 0.3 * 10]
    assert rescale(out, plan, mass, value, only).flatten().tolist() == pytest.approx(by_hand)


def test_rescale_is_exact_when_the_mass_is_and_values_are_constant_in_a_block(oracle):
    q, k, _ = oracle.qkv(1, 2, 48, 48, 8)
    q = q[:, :, ::16].repeat_interleave(16, dim=2)  # one query per block
    v = torch.randn(1, 2, 3, 8).repeat_interleave(16, dim=2)
    plan = oracle.plan(1, 2, 48, 48, 16, 16)
    full = (q @ k.mT * 0.3).softmax(dim=-1)
    mass = full.unflatten(3, (3, 16)).sum(-1)[:, :, ::16]
    exact, _ = reference_attention(q, k, v, plan, scale=0.3)
    got = rescale(exact, plan, mass, v[:, :, ::16])
    torch.testing.assert_close(got, full @ v)
