"""Eight-bit attention at sizes that only a GPU can run: against float64 and its reference."""

import math

import pytest
import torch

from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.low_bit import (
    attend_quantized,
    key_block_of,
    quantize,
)
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import low_bit_portable
from vidsparse.kernels.triton.low_bit import value_dtype_of

pytestmark = pytest.mark.gpu


def qkv(batch, heads, q_len, kv_len, head_dim, dtype=torch.bfloat16):
    return [
        torch.randn(batch, n, heads, head_dim, device="cuda", dtype=dtype).transpose(1, 2)
        for n in (q_len, kv_len, kv_len)
    ]


def random_plan(batch, heads, q_len, kv_len, q_block, kv_block, share=0.3):
    shape = (batch, heads, -(-q_len // q_block), -(-kv_len // kv_block))
    keep = torch.rand(shape, device="cuda") < share
    one = torch.randint(shape[-1], (*shape[:-1], 1), device="cuda")
    keep |= torch.zeros_like(keep).scatter_(-1, one, True)
    return BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=q_block, kv_block=kv_block)


def relative(ours, exact):
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def check(out, lse, q, k, v, plan):
    """As the plain-torch reference of the same integers, and near float64."""
    x = quantize(
        q, k, v, scale=q.shape[-1] ** -0.5, key_block=key_block_of(plan),
        value_dtype=value_dtype_of(q.device),
    )  # fmt: skip
    keys = 128 if plan.kv_block % 64 == 0 and plan.q_block % 128 == 0 else 64
    same, same_lse = attend_quantized(x, plan, keys=keys, dtype=torch.float32)
    q, k, v = (y.double() for y in (q, k, v))
    exact, exact_lse = reference_attention(q, k, v, plan, return_lse=True)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert (out[lse.isinf()] == 0).all()
    assert relative(out, same) < 4e-3  # bfloat16 alone: 1.7e-3
    assert relative(out, exact) < 1.02 * relative(same, exact) + 1e-3
    seen = lse.isfinite()
    assert float((lse - same_lse)[seen].abs().max()) < 1e-3
    assert float((lse - exact_lse)[seen].abs().max()) < 8e-2


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("layout", ["plain", "interleaved"])
def test_the_quantising_pass(value_dtype, layout):
    if value_dtype != value_dtype_of(torch.device("cuda")) == torch.float16:
        pytest.skip("this GPU has no FP8")
    q, k, v = qkv(2, 3, 1000, 1301, 96)
    options = {"scale": 0.2, "value_dtype": value_dtype}
    ours = quantize(q, k, v, layout=layout, impl="triton", **options)
    same = quantize(q, k, v, layout=layout, impl="reference", **options)
    for name in ("query_scale", "shift", "key_scale", "value_scale"):
        mine, theirs = getattr(ours, name), getattr(same, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    scale = options["scale"] * math.log2(math.e)
    rows = q.double() / (ours.query_scale.double() / scale)[..., None]
    keys = k.double() - k.double().mean(dim=2, keepdim=True)
    block = torch.arange(1301, device="cuda") // 128
    keys = keys / ours.key_scale.double()[:, :, block][..., None]
    for found, exact in ((ours.query, rows), (ours.key, keys)):
        assert float((found.double() - exact).abs().max()) < 0.5 + 1e-3  # a nearest integer
    for name in ("query", "key"):  # ties and the last bits of means go either way
        differ = (getattr(ours, name).int() - getattr(same, name).int()).abs()
        assert int(differ.max()) <= 1
        assert float(differ.float().mean()) < 5e-3
    assert torch.equal(ours.value.float(), same.value.float())


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(
    ("q_block", "kv_block"), [(128, 128), (128, 64), (256, 192), (128, 256), (64, 48)]
)
def test_ragged_plans(head_dim, q_block, kv_block):
    q, k, v = qkv(3, 2, 900, 1301, head_dim)
    plan = random_plan(1, 2, 900, 1301, q_block, kv_block)
    out, lse = low_bit_attention(q, k, v, plan, return_lse=True)
    assert out.stride() == torch.empty_like(q).stride()
    check(out, lse, q, k, v, plan)


def test_short_lists_and_few_rows():
    for q_len, kv_len, share in ((1, 1, 1.0), (130, 5, 1.0), (1000, 1000, 0.0)):
        q, k, v = qkv(1, 2, q_len, kv_len, 128)
        plan = random_plan(1, 2, q_len, kv_len, 128, 128, share)
        out, lse = low_bit_attention(q, k, v, plan, return_lse=True)
        check(out, lse, q, k, v, plan)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_density_one_equals_dense_at_the_wan_14b_length(head_dim):
    tokens = 75_600
    q, k, v = qkv(1, 2, tokens, tokens, head_dim)
    out, lse = low_bit_attention(q, k, v, return_lse=True)
    rows = torch.cat([torch.randint(tokens, (62,)), torch.tensor([0, tokens - 1])]).cuda()
    scores = q[:, :, rows].double() @ k.double().mT * head_dim**-0.5
    exact = scores.softmax(dim=-1) @ v.double()
    assert relative(out[:, :, rows], exact) < 0.05
    assert float((lse[:, :, rows] - scores.logsumexp(dim=-1)).abs().max()) < 2e-2


def test_sums_of_many_keys_are_made_in_float32():
    """Equal keys: a sum of 65,536 values kept in the tensor cores' 13 bits is off by 4 %."""
    q, k, v = qkv(1, 1, 128, 65_536, 128, torch.float16)
    k.zero_()
    v.uniform_(0.5, 1.5)
    out, _ = low_bit_attention(q, k, v)
    x = quantize(q, k, v, scale=1.0, impl="reference")
    mean = (x.value.double() * x.value_scale[:, :, None]).mean(dim=2, keepdim=True)
    assert float(((out.double() - mean) / mean).abs().max()) < 1.5e-3


def test_exact_where_eight_bits_are_enough():
    q, k = torch.zeros(2, 1, 1, 256, 128, device="cuda")
    q[..., :7] = torch.randint(-1, 2, (256, 7), device="cuda")
    k[..., :128, :7] = torch.randint(-1, 2, (128, 7), device="cuda")
    k[..., 128:, :] = -k[..., :128, :]
    q[..., 0], k[..., 0] = 1, torch.tensor([1.0, -1.0], device="cuda").repeat_interleave(128)
    v = torch.randint(-7, 8, (1, 1, 256, 128), device="cuda").float()
    v[..., 0, :] = 7
    q, k, v = (x.half() for x in (q, k, v))
    plan = random_plan(1, 1, 256, 256, 128, 128, 1.0)
    out, lse = low_bit_attention(q, k, v, plan, scale=math.log(2), return_lse=True)
    q, k, v = (x.double() for x in (q, k, v))
    exact, exact_lse = reference_attention(q, k, v, plan, scale=math.log(2), return_lse=True)
    assert float((out - exact).abs().max()) < 4e-3  # float16's own rounding of numbers up to 7
    assert float((lse - exact_lse).abs().max()) < 1e-4


def test_what_stands_behind_the_keys_has_no_influence():
    q, k, v = qkv(1, 2, 300, 600, 128)
    plan = random_plan(1, 2, 300, 257, 128, 128, 0.7)
    first, first_lse = low_bit_attention(q, k[:, :, :257], v[:, :, :257], plan, return_lse=True)
    k[:, :, 257:], v[:, :, 257:] = 1e30, float("nan")
    out, lse = low_bit_attention(q, k[:, :, :257], v[:, :, :257], plan, return_lse=True)
    assert torch.equal(out, first)
    assert torch.equal(lse, first_lse)


def test_twice_the_same():
    q, k, v = qkv(1, 4, 5000, 5000, 128)
    plan = random_plan(1, 4, 5000, 5000, 128, 128)
    first, _ = low_bit_attention(q, k, v, plan)
    for _ in range(5):
        assert torch.equal(low_bit_attention(q, k, v, plan)[0], first)


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_the_portable_kernel(value_dtype):
    if value_dtype.itemsize == 1 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    q, k, v = qkv(1, 2, 900, 1301, 128)
    plan = random_plan(1, 2, 900, 1301, 128, 128)
    x = quantize(q, k, v, scale=128**-0.5, value_dtype=value_dtype)
    out = torch.empty_like(q)
    lse = low_bit_portable.launch(x, plan, out, return_lse=True)
    same, same_lse = attend_quantized(x, plan, keys=64, dtype=torch.float32)
    assert relative(out, same) < 6e-3
    assert lse is not None
    assert float((lse - same_lse).abs().max()) < 2e-3


def test_no_host_sync():
    q, k, v = qkv(1, 2, 1000, 1000, 128)
    plan = random_plan(1, 2, 1000, 1000, 128, 128)
    low_bit_attention(q, k, v, plan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        low_bit_attention(q, k, v, plan, return_lse=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
