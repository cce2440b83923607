"""The engine that is compiled on this machine: as the reference, and refused where it cannot be."""

import dataclasses
import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.native import native_attention, native_unsupported, observe_native
from vidsparse.kernels.engines.observe import observe_reference
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.table import choose_engine
from vidsparse.kernels.native import build
from vidsparse.kernels.plan import BlockPlan, Pooled

SCALE = 0.3
HERE = Case(device_type="cpu", dtype=torch.float32)


@pytest.fixture
def built_anew(monkeypatch, tmp_path):
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._load.cache_clear()
    yield tmp_path / "vidsparse"
    build._load.cache_clear()


def assert_as_the_reference(q, k, v, plan, oracle):
    exact, exact_lse = reference_attention(q, k, v, plan, scale=SCALE, return_lse=True)
    out, lse = native_attention(q, k, v, plan, scale=SCALE, return_lse=True)
    alone, nothing = native_attention(q, k, v, plan, scale=SCALE)
    assert lse is not None
    assert nothing is None
    assert torch.equal(out, alone)
    oracle.assert_as_exact(out, exact, torch.float32, times=30)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    lse, exact_lse = (x.nan_to_num(0, 0, 0) for x in (lse, exact_lse))
    oracle.assert_as_exact(lse, exact_lse, torch.float32, times=30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_plan_equals_the_reference(oracle, data):
    """Ragged, unequal, empty and shared blocks, stand-ins of size 0, more keys than at once."""
    draw = data.draw
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    q_len, kv_len = draw(st.integers(1, 150)), draw(st.integers(1, 500))
    q_block, kv_block = (16 * draw(st.integers(1, 10)) for _ in range(2))
    unequal = draw(st.booleans())
    plan = oracle.plan(
        draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])),
        q_len, kv_len, q_block, kv_block,
        q_blocks=draw(st.integers(1, 6)) if unequal else None,
        kv_blocks=draw(st.integers(1, 40)) if unequal else None,
        empty=draw(st.booleans()),
    )  # fmt: skip
    q, k, v = oracle.qkv(batch, heads, q_len, kv_len, draw(st.integers(1, 70)))
    if draw(st.booleans()):
        means = [torch.randn(batch, heads, plan.num_kv_blocks, q.shape[3]) for _ in range(2)]
        shape = draw(st.sampled_from([(), (1, 1), (batch, 1), (batch, heads)]))
        size = torch.randint(0, 9, (*shape, plan.num_kv_blocks)).float()
        plan = dataclasses.replace(plan, pooled=Pooled(key=means[0], value=means[1], size=size))
    if draw(st.booleans()):  # as models have them
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert_as_the_reference(q, k, v, plan, oracle)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_it_observes_equals_the_reference(oracle, data):
    draw = data.draw
    q_len, kv_len = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    q_block, kv_block = (16 * draw(st.integers(1, 8)) for _ in range(2))
    plan = oracle.plan(1, 2, q_len, kv_len, q_block, kv_block, empty=draw(st.booleans()))
    q, k, v = oracle.qkv(2, 2, q_len, kv_len, 24)
    ours = observe_native(q, k, v, plan, scale=SCALE)
    exact = observe_reference(q, k, v, plan, scale=SCALE)
    for mine, theirs in zip(ours, exact, strict=True):
        assert torch.equal(mine.isposinf(), theirs.isposinf())
        assert torch.equal(mine.isneginf(), theirs.isneginf())
        mine, theirs = (x.nan_to_num(0, 0, 0) for x in (mine, theirs))
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def test_scores_of_any_size_neither_overflow_nor_vanish(oracle):
    q, k, v = oracle.qkv(1, 2, 70, 200, 16)
    plan = oracle.plan(1, 2, 70, 200, 16, 16)
    for times in (1e-20, 1e3):
        exact, _ = oracle.attention(q * times, k, v, plan, scale=SCALE)
        coarse, _ = reference_attention(q * times, k, v, plan, scale=SCALE)
        ours, _ = native_attention(q * times, k, v, plan, scale=SCALE)
        allowed = 4 * float((coarse.double() - exact).abs().max()) + 1e-6
        assert float((ours.double() - exact).abs().max()) <= allowed


def test_what_is_no_number_stays_none(oracle):
    q, k, v = oracle.qkv(1, 1, 40, 40, 16)
    plan = oracle.plan(1, 1, 40, 40, 16, 16)
    q[0, 0, 3, 5] = torch.nan
    out, _ = native_attention(q, k, v, plan, scale=SCALE)
    assert out[0, 0, 3].isnan().all()
    assert out[0, 0, 4:].isfinite().all()


def test_it_computes_the_same_on_any_number_of_threads(oracle):
    q, k, v = oracle.qkv(2, 2, 150, 150, 16)
    plan = oracle.plan(2, 2, 150, 150, 16, 16)
    before, outs = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            outs.append(native_attention(q, k, v, plan, scale=SCALE)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_threads_may_call_it_at_once(oracle):
    q, k, v = oracle.qkv(1, 2, 150, 150, 16)
    plan = oracle.plan(1, 2, 150, 150, 16, 16)
    expected, found = native_attention(q, k, v, plan, scale=SCALE)[0], []

    def call():
        found.append(native_attention(q, k, v, plan, scale=SCALE)[0])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)


def test_it_is_compiled_once_and_then_found(built_anew, monkeypatch):
    assert build.why_not() is None
    (made,) = built_anew.iterdir()
    monkeypatch.setattr("shutil.which", lambda name: None)
    build._load.cache_clear()
    assert build.why_not() is None
    assert [*built_anew.iterdir()] == [made]


def test_without_wide_vectors_it_computes_the_same(built_anew, monkeypatch, oracle):
    q, k, v = oracle.qkv(1, 2, 150, 300, 40)
    plan = oracle.plan(1, 2, 150, 300, 32, 16)
    wide = native_attention(q, k, v, plan, scale=SCALE)[0]
    monkeypatch.setattr(build, "FLAGS", {})
    build._load.cache_clear()
    assert_as_the_reference(q, k, v, plan, oracle)
    oracle.assert_as_exact(native_attention(q, k, v, plan, scale=SCALE)[0], wide, torch.float32)


@pytest.mark.parametrize("kind", ["no compiler", "another system", "wrong source", "no folder"])
def test_where_it_cannot_be_compiled_it_says_why_and_keys_are_gathered(
    built_anew, monkeypatch, tmp_path, kind
):
    reason = {
        "no compiler": "needs g",
        "another system": "is for Linux, not darwin",
        "wrong source": "cannot compile its loop here: .*error",
        "no folder": "cannot hold what it compiles",
    }[kind]
    if kind == "no compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
    if kind == "another system":
        monkeypatch.setattr("sys.platform", "darwin")
    if kind == "wrong source":
        source = tmp_path / "wrong.cpp"
        source.write_text("int x = ;")
        monkeypatch.setattr(build, "SOURCE", source)
    if kind == "no folder":
        built_anew.write_text("a file")
    (said,) = native_unsupported(HERE)
    assert re.search(reason, said)
    choice = choose_engine(HERE)
    assert choice.engine == "cpu"
    assert said in choice.why


def test_other_devices_and_wider_numbers_are_refused():
    (said,) = native_unsupported(dataclasses.replace(HERE, device_type="cuda"))
    assert "it runs on CPUs, not on cuda" in said
    (said,) = native_unsupported(dataclasses.replace(HERE, dtype=torch.float64))
    assert "float32, which is too coarse for torch.float64" in said
    assert choose_engine(dataclasses.replace(HERE, dtype=torch.float64)).engine == "cpu"


def test_gradients_flow_through_it(oracle):
    plan, inputs = oracle.plan(1, 2, 70, 90, 16, 16), oracle.qkv(1, 2, 70, 90, 16)
    grads = []
    for engine in ("native", "reference"):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        attention(q, k, v, plan, engine=engine).square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_rows_are_read_where_they_lie():
    """What lies beside a row in memory takes no part."""
    x = torch.full((1, 1, 40, 21), torch.nan)
    x[..., :16, :16] = torch.randn(16, 16)
    inner = x[..., :16, :16]
    plan = BlockPlan.from_mask(
        torch.ones(1, 1, 1, 1).bool(), q_len=16, kv_len=16, q_block=16, kv_block=16
    )
    out, _ = native_attention(inner, inner, inner, plan, scale=1.0)
    assert out.isfinite().all()
