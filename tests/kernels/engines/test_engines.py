"""Every engine against the float64 oracle, and what no engine may do."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.cpu import cpu_attention
from vidsparse.kernels.engines.table import ENGINES, choose_engine
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.pooling import pool_ragged

ON_CPUS = [] if torch.cuda.is_available() else ["native"]
EVERYWHERE = ["cpu", "reference", "triton", *ON_CPUS]  # run without a package where tests run

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
    (1, 1, 300, 300, 96, 256, 48),
]


def torch_attention(q, k, v, plan):
    """Torch's own attention under the same plan, in the same dtype: the yardstick."""
    mask = torch.zeros(plan.to_dense_mask().shape, dtype=q.dtype, device=q.device)
    mask.masked_fill_(~plan.to_dense_mask(), float("-inf"))
    if plan.pooled is not None:
        rows = plan.to_block_mask().repeat_interleave(plan.q_block, -2)[..., : plan.q_len, :]
        extra = plan.pooled.size.log().to(q.dtype).expand(rows.shape).masked_fill(rows, -torch.inf)
        mask = torch.cat([mask, extra], dim=-1)
        k = torch.cat([k, plan.pooled.key.to(k.dtype)], dim=2)
        v = torch.cat([v, plan.pooled.value.to(v.dtype)], dim=2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def assert_as_exact_as_torch(ours, q, k, v, plan, oracle):
    """No tuned tolerance: twice torch's own error, and one rounding."""
    exact, _ = oracle.attention(q, k, v, plan)
    band = torch.finfo(q.dtype).eps * float(exact.abs().max())
    allowed = 2 * float((torch_attention(q, k, v, plan).double() - exact).abs().max()) + band
    if q.dtype == torch.float32:
        allowed += 4 * band  # base 2 and another order of sums
    assert float((ours.double() - exact).abs().max()) <= allowed


@pytest.mark.parametrize("with_pooled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("engine", ["cpu", "triton", *ON_CPUS])
def test_engines_are_as_exact_as_torch_on_awkward_shapes(
    oracle, device, engine, shape, dtype, with_pooled
):
    if (engine, dtype, device) == ("triton", torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies bf16 as integers")
    q, k, v = oracle.qkv(*shape[:5], dtype, device)
    plan = oracle.plan(*shape[:4], *shape[5:], device=device)
    if with_pooled:
        plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, plan.kv_block))
    ours = attention(q, k, v, plan, engine=engine)
    assert ours.dtype == dtype
    assert ours.stride() == torch.empty_like(q).stride()
    assert_as_exact_as_torch(ours, q, k, v, plan, oracle)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("engine", EVERYWHERE)
def test_any_plan_equals_the_oracle(oracle, device, engine, data):
    """Ragged lengths, unequal blocks, batch, heads, empty rows and pooled stand-ins."""
    draw = data.draw
    batch, heads, head_dim = (draw(st.integers(1, n)) for n in (2, 2, 40))
    q_len, kv_len = draw(st.integers(1, 50)), draw(st.integers(1, 90))
    q_block, kv_block = (16 * draw(st.integers(1, 4)) for _ in range(2))
    unequal = draw(st.booleans())
    plan = oracle.plan(
        draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])),
        q_len, kv_len, q_block, kv_block,
        q_blocks=draw(st.integers(1, 6)) if unequal else None,
        kv_blocks=draw(st.integers(1, 6)) if unequal else None,
        empty=draw(st.booleans()), device=device,
    )  # fmt: skip
    q, k, v = oracle.qkv(batch, heads, q_len, kv_len, head_dim, device=device)
    if not unequal and draw(st.booleans()):
        plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, kv_block))
    out, lse = attention(q, k, v, plan, return_lse=True, engine=engine)
    exact, exact_lse = oracle.attention(q, k, v, plan)
    oracle.assert_as_exact(out, exact, torch.float32, times=30)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    oracle.assert_as_exact(
        lse.nan_to_num(0, 0, 0), exact_lse.nan_to_num(0, 0, 0), torch.float32, 30
    )


@pytest.mark.parametrize("plan_batch", [1, 2])
@pytest.mark.parametrize("plan_heads", [1, 3])
@pytest.mark.parametrize("engine", EVERYWHERE)
def test_a_plan_of_one_is_shared_by_all_batches_and_heads(
    oracle, device, engine, plan_batch, plan_heads
):
    q, k, v = oracle.qkv(2, 3, 90, 90, 16, device=device)
    plan = oracle.plan(plan_batch, plan_heads, 90, 90, 16, 16, device=device)
    ours = attention(q, k, v, plan, engine=engine)
    assert_as_exact_as_torch(ours, q, k, v, plan, oracle)


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_a_short_tail_kept_by_some_rows_only_is_read_by_those(oracle, device, engine):
    q, k, v = oracle.qkv(1, 1, 70, 70, 16, device=device)
    keep = torch.zeros(1, 1, 5, 5, device=device).bool()
    keep[..., [0, 1, 2, 3, 4], [0, 4, 2, 4, 4]] = True  # three rows keep nothing but the tail
    keep[..., 3, 1] = True
    plan = BlockPlan.from_mask(keep, q_len=70, kv_len=70, q_block=16, kv_block=16)
    assert_as_exact_as_torch(attention(q, k, v, plan, engine=engine), q, k, v, plan, oracle)


def test_more_rows_than_fit_one_batch_are_computed_too(oracle, monkeypatch):
    q, k, v = oracle.qkv(1, 2, 500, 500, 16)
    plan = oracle.plan(1, 2, 500, 500, 16, 16)
    monkeypatch.setattr("vidsparse.kernels.engines.cpu.CPU_TOKENS", 300)
    assert_as_exact_as_torch(attention(q, k, v, plan, engine="cpu"), q, k, v, plan, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_full_plan_on_the_cpu_engine_is_bit_equal_to_torch(oracle, dtype):
    q, k, v = oracle.qkv(2, 2, 100, 100, 24, dtype)
    full = torch.ones(1, 1, 7, 7).bool()
    plan = BlockPlan.from_mask(full, q_len=100, kv_len=100, q_block=16, kv_block=16)
    ours, _ = cpu_attention(q, k, v, plan, scale=24**-0.5)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("engine", ["cpu", "triton", *ON_CPUS])
def test_keys_that_nobody_keeps_are_never_read(oracle, device, engine):
    q, k, v = oracle.qkv(1, 2, 90, 90, 16, device=device)
    keep = torch.eye(6, device=device).bool().expand(1, 1, 6, 6).clone()
    keep[..., 1, :] = keep[..., :, 1] = False
    keep[..., 1, 0] = True
    plan = BlockPlan.from_mask(keep, q_len=90, kv_len=90, q_block=16, kv_block=16)
    clean = attention(q, k, v, plan, engine=engine)
    k[:, :, 16:32] = v[:, :, 16:32] = float("nan")
    assert torch.equal(attention(q, k, v, plan, engine=engine), clean)


@pytest.mark.parametrize("engine", ["cpu", "triton", *ON_CPUS])
def test_no_element_of_the_output_is_left_unwritten(oracle, device, engine, monkeypatch):
    q, k, v = oracle.qkv(2, 2, 77, 77, 8, device=device)
    plan = oracle.plan(2, 2, 77, 77, 16, 16, device=device)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: empty_like(x, **kw).fill_(torch.nan))
    assert ENGINES[engine].run(q, k, v, plan, scale=1.0)[0].isfinite().all()


@pytest.mark.parametrize("engine", EVERYWHERE)
@pytest.mark.parametrize("seq", [96, 90])
def test_engines_agree_when_all_but_the_diagonal_is_pooled(oracle, device, engine, seq):
    q, k, v = oracle.qkv(1, 2, seq, seq, 16, device=device)
    diagonal = torch.eye(6, device=device).bool().expand(1, 1, 6, 6)
    plan = BlockPlan.from_mask(diagonal, q_len=seq, kv_len=seq, q_block=16, kv_block=16)
    plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, 16))
    ours = attention(q, k, v, plan, engine=engine)
    assert_as_exact_as_torch(ours, q, k, v, plan, oracle)


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_every_engine_takes_a_scale(oracle, device, engine):
    q, k, v = oracle.qkv(1, 1, 40, 40, 8, device=device)
    plan = oracle.plan(1, 1, 40, 40, 16, 16, device=device)
    ours = attention(q, k, v, plan, scale=0.05, engine=engine)
    oracle.assert_as_exact(ours, oracle.attention(q, k, v, plan, scale=0.05)[0], q.dtype)


def test_an_unknown_engine_is_refused_with_the_names_there_are(oracle):
    q, k, v = oracle.qkv(1, 1, 16, 16, 8)
    names = "cpu, flash, flex, int8, native, reference, triton, xformers"
    with pytest.raises(BadInputError, match=f"unknown engine 'warp': choose auto, {names}"):
        attention(q, k, v, oracle.plan(1, 1, 16, 16, 16, 16), engine="warp")


@pytest.mark.parametrize("engine", ["flash", "flex", "xformers"])
def test_an_engine_that_cannot_run_says_why(oracle, engine):
    q, k, v = oracle.qkv(1, 1, 16, 16, 8)
    with pytest.raises(BadInputError, match=f"engine '{engine}' cannot run this: .*CUDA|GPU"):
        attention(q, k, v, oracle.plan(1, 1, 16, 16, 16, 16), engine=engine)


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("engine", ["cpu", "native"])
def test_engines_of_cpus_run_clusters_with_and_without_stand_ins(oracle, engine, return_lse):
    q, k, v = oracle.qkv(2, 3, 40, 40, 8)
    plan = oracle.plan(2, 3, 40, 40, 16, 16, q_blocks=3, kv_blocks=4)
    means = [pool_ragged(x, plan.kv_offsets.expand(2, 3, -1)) for x in (k, v)]
    pooled = Pooled(key=means[0], value=means[1], size=plan.kv_sizes)
    for each in (plan, dataclasses.replace(plan, pooled=pooled)):
        found = attention(q, k, v, each, engine=engine, return_lse=return_lse)
        expected = attention(q, k, v, each, engine="reference", return_lse=return_lse)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lengths", [(33, 32), (32, 33)])
def test_a_plan_for_other_lengths_is_refused(oracle, lengths):
    q, k, v = oracle.qkv(1, 1, 32, 32, 8)
    with pytest.raises(BadInputError, match="got 32, 32 and 32: make a plan for these tensors"):
        attention(q, k, v, oracle.plan(1, 1, *lengths, 16, 16))


def test_keys_and_values_of_two_lengths_are_refused(oracle):
    q, k, v = oracle.qkv(1, 1, 32, 32, 8)
    with pytest.raises(BadInputError, match="got 32, 32 and 31"):
        attention(q, k, v[:, :, :31], oracle.plan(1, 1, 32, 32, 16, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, p: (q[0], k, v, p, {}), r"must be \(batch, heads, seq, head_dim\)"),
        (lambda q, k, v, p: (q, k[:, :1], v[:, :1], p, {}), "must agree in batch, heads"),
        (lambda q, k, v, p: (q, k.half(), v, p, {}), "must have one dtype"),
        (lambda q, k, v, p: (q, k, v, p, {"scale": -1.0}), "scale must be positive, got -1"),
        (
            lambda q, k, v, p: (
                q, k, v, dataclasses.replace(p, kv_index=p.kv_index.long()), {}
            ),
            "must be int32",
        ),
        (
            lambda q, k, v, p: (q[:1], k[:1], v[:1], p, {}),
            "the plan is for batch 2, q has batch 1",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_before_any_launch(oracle, change, message):
    q, k, v = oracle.qkv(2, 2, 32, 32, 8)
    *arguments, keywords = change(q, k, v, oracle.plan(2, 2, 32, 32, 16, 16))
    with pytest.raises(BadInputError, match=message):
        attention(*arguments, **keywords)


def test_validate_names_what_is_wrong_with_a_plan(oracle):
    q, k, v = oracle.qkv(1, 1, 32, 32, 8)
    plan = oracle.plan(1, 1, 32, 32, 16, 16)
    broken = dataclasses.replace(plan, kv_count=torch.zeros_like(plan.kv_count))
    with pytest.raises(BadInputError, match="the plan is wrong: every query block must list"):
        attention(q, k, v, broken, validate=True)


@pytest.mark.parametrize("device_type", ["cpu", "mps"])
def test_the_automatic_choice_without_a_gpu_is_the_cpu_engine_and_says_why(device_type):
    choice = choose_engine(Case(device_type=device_type, dtype=torch.float32))
    assert choice.engine == ("native" if device_type == "cpu" else "cpu")
    assert choice.why


def test_the_automatic_choice_takes_the_fastest_measured_engine_that_can_run(monkeypatch):
    rows = [
        {"arch": [9, 0], "head_dim": 128, "q_block": 128, "kv_block": 128,
         "tflops": {"cpu": 3.0, "reference": 9.0, "flash": 99.0}},
        {"arch": [9, 0], "head_dim": 64, "q_block": 128, "kv_block": 128,
         "tflops": {"cpu": 5.0, "reference": 2.0}},
    ]  # fmt: skip
    monkeypatch.setattr("vidsparse.kernels.engines.table._table", lambda part="rows": rows)
    case = Case(device_type="cpu", arch=(9, 0), head_dim=120)
    assert choose_engine(case).engine == "reference"  # flash is faster, and not here
    assert "reference 9, cpu 3" in choose_engine(case).why
    assert choose_engine(dataclasses.replace(case, head_dim=64)).engine == "cpu"
