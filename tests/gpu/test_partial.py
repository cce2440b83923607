"""Plans with partial blocks on a GPU: every engine that takes them in bf16, against float64."""

import pytest
import torch

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.kernels.planning.partial import plan_of_pairs
from vidsparse.kernels.triton import portable
from vidsparse.kernels.validate import validated

pytestmark = pytest.mark.gpu


def random_mask(q_len, kv_len, q_block, kv_block):
    """Whole, partial and skipped blocks; and two rows without any key."""
    rows, columns = -(-q_len // q_block), -(-kv_len // kv_block)
    share = torch.tensor([0.0, 0.0, 1.0, 0.5, 0.02], device="cuda")
    drawn = share[torch.randint(len(share), (rows, 1, columns, 1), device="cuda")]
    seen = torch.rand(rows, q_block, columns, kv_block, device="cuda") < drawn
    mask = seen.reshape(rows * q_block, -1)[:q_len, :kv_len].clone()
    mask[:, -1] = True
    mask[[3, q_len // 2]] = False
    return mask


def plan_of(mask, q_block, kv_block):
    rows, columns = -(-mask.shape[0] // q_block), -(-mask.shape[1] // kv_block)
    return validated(plan_of_pairs(
        lambda q, k: mask[q, k],
        q_len=mask.shape[0], kv_len=mask.shape[1], q_block=q_block, kv_block=kv_block,
        candidates=torch.ones(rows, columns, dtype=torch.bool, device="cuda"),
    ))  # fmt: skip


def qkv(heads, q_len, kv_len, head_dim, dtype=torch.bfloat16):
    lengths = (q_len, kv_len, kv_len)
    made = (torch.randn(2, n, heads, head_dim, device="cuda", dtype=dtype) for n in lengths)
    return [x.transpose(1, 2) for x in made]


def check(found, q, k, v, plan, most=5e-3):
    exact, exact_lse = reference_attention(
        q.double(), k.double(), v.double(), plan, return_lse=True
    )
    out, lse = found
    assert float((out.double() - exact).norm() / exact.norm()) < most
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert (out[lse.isinf()] == 0).all()
    seen = exact_lse.isfinite()
    assert float((lse[seen] - exact_lse[seen]).abs().max()) < 2e-2


@pytest.mark.parametrize("engine", ["triton", "flex", "cpu"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("q_block", "kv_block"),
    [(128, 128), (64, 64), (128, 64), (64, 128), (128, 32), (128, 96), (256, 256), (48, 80)],
)
def test_random_masks(engine, head_dim, q_block, kv_block):
    q, k, v = qkv(3, 1500, 2011, head_dim)
    plan = plan_of(random_mask(1500, 2011, q_block, kv_block), q_block, kv_block)
    if reasons := ENGINES[engine].why_not(Case.of(q, k, v, plan, True)):
        pytest.skip("; ".join(reasons))
    check(attention(q, k, v, plan, engine=engine, return_lse=True), q, k, v, plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("q_block", "kv_block"), [(128, 128), (64, 48)])
def test_the_portable_kernel(dtype, q_block, kv_block):
    q, k, v = qkv(2, 1000, 1300, 128, dtype)
    plan = plan_of(random_mask(1000, 1300, q_block, kv_block), q_block, kv_block)
    found = portable.launch(q, k, v, plan, 128**-0.5, True)[:2]
    check(found, q, k, v, plan, 1e-5 if dtype == torch.float32 else 5e-3)


def test_keys_that_a_row_does_not_see_change_nothing():
    q, k, v = qkv(4, 4096, 4096, 128)
    near = (torch.arange(4096, device="cuda")[:, None] - torch.arange(4096, device="cuda")).abs()
    plan = plan_of(near < 1000, 128, 128)
    assert plan.partial is not None
    out = attention(q, k, v, plan, engine="triton")
    for x in (k, v):
        x[:, :, 3000:] = 100.0
    again = attention(q, k, v, plan, engine="triton")
    assert torch.equal(out[:, :, : 3000 - 1000], again[:, :, : 3000 - 1000])


def test_rows_that_see_nothing_in_their_first_tiles_are_exact():
    q, k, v = qkv(2, 512, 1024, 128)
    q[:, :, 100:200] *= 40  # scores far below zero, and far above
    mask = torch.ones(512, 1024, dtype=torch.bool, device="cuda")
    mask[64:192, 128:] = False  # all but the first tile, which comes last
    mask[192:320, 900:] = False
    plan = plan_of(mask, 128, 128)
    check(attention(q, k, v, plan, engine="triton", return_lse=True), q, k, v, plan, 1e-2)


def test_gradients():
    leaves = [x.detach().requires_grad_() for x in qkv(2, 700, 900, 64)]
    plan = plan_of(random_mask(700, 900, 128, 128), 128, 128)
    q, k, v = leaves
    out = attention(q, k, v, plan, engine="triton")
    q, k, v = truth = [x.detach().double().requires_grad_() for x in leaves]
    exact, _ = reference_attention(q, k, v, plan)
    direction = torch.randn_like(exact)
    got = torch.autograd.grad(out, leaves, direction.to(out.dtype))
    expected = torch.autograd.grad(exact, truth, direction)
    for mine, right in zip(got, expected, strict=True):
        assert float((mine.double() - right).norm() / right.norm()) < 1e-2


def test_the_call_makes_no_host_sync():
    q, k, v = qkv(2, 1000, 1000, 128)
    plan = plan_of(random_mask(1000, 1000, 128, 128), 128, 128)
    attention(q, k, v, plan, engine="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(q, k, v, plan, engine="triton", return_lse=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
