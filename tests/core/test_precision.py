"""Attention in eight bits as a preset's precision: what runs, what is refused, what is counted."""

import dataclasses

import pytest
import torch

import vidsparse
from vidsparse.grid import TokenGrid
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.int8 import int8_unsupported, low_bit_attention
from vidsparse.kernels.engines.table import choose_engine
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 8, 8)
HOPPER = Case(device_type="cuda", arch=(9, 0))


def no_dense(*qkv):
    raise AssertionError("the model's own attention ran")


def run(engine, q, k, v, *, at, dense=no_dense, progress=None, **facts):
    progress = progress or list(Progress.first(10).steps())[at]
    call = Call(grid=GRID, layer=0, step=at, progress=progress, layers=1, **facts)
    return engine(q, k, v, call, dense)


def qkv(heads=2, head_dim=32):
    torch.manual_seed(0)
    return [torch.randn(1, GRID.tokens, heads, head_dim) for _ in "qkv"]


def eight_bits(**changes):
    return PRESETS["draft"].override({"precision": "int8", "min_tokens": 0} | changes)


def test_dense_and_sparse_steps_run_in_eight_bits_and_are_counted(int8_on_cpu):
    engine, (q, k, v) = SparseAttention(eight_bits(density=0.5)), qkv()
    dense = run(engine, q, k, v, at=0)
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    expected, _ = low_bit_attention(turned[0], turned[1], turned[2])
    assert torch.equal(dense, expected.transpose(1, 2))
    exact = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(32**-0.5).softmax(dim=-1)
    exact = torch.einsum("bhqk,bkhd->bqhd", exact, v)
    assert 0.001 < float((dense - exact).norm() / exact.norm()) < 0.08
    sparse = run(engine, q, k, v, at=9)
    in_floats = SparseAttention(PRESETS["draft"].override({"density": 0.5, "min_tokens": 0}))
    same = run(in_floats, q, k, v, at=9)
    assert 0.001 < float((sparse - same).norm() / same.norm()) < 0.08
    assert dict(engine.stats.engines) == {"int8": 2}


@pytest.mark.parametrize(("tokens", "head_dim"), [(4_800, 64), (17_776, 64), (75_600, 128)])
def test_blocks_are_of_the_size_that_eight_bits_take(tokens, head_dim):
    block = eight_bits().block_on("cuda", tokens, head_dim)
    case = dataclasses.replace(HOPPER, head_dim=head_dim, q_block=block, kv_block=block)
    assert not int8_unsupported(case)
    assert PRESETS["draft"].block_on("cuda", 4_800, head_dim) == 64
    assert eight_bits(block=64).block_on("cuda", tokens, head_dim) == 64  # whoever says, is obeyed


def test_exact_rows_are_exact_in_the_models_precision(int8_on_cpu):
    changes = {"density": 0.5, "correction": "delta", "exact_every": 32, "exact_gain": "agreed"}
    engine, (q, k, v) = SparseAttention(eight_bits(**changes)), qkv()
    out = run(engine, q, k, v, at=9)
    assert engine.stats.engines["int8"] == 1
    assert engine.stats.engines.total() == 2
    rows = torch.arange(0, GRID.tokens, 32)
    score = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], k).mul(32**-0.5).softmax(dim=-1)
    exact = torch.einsum("bhqk,bkhd->bqhd", score, v)
    torch.testing.assert_close(out[:, rows], exact, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_sparse_keeps_the_models_own_attention(int8_on_cpu):
    engine, (q, k, v) = SparseAttention(eight_bits(density=0.5)), qkv()
    out = run(engine, q, k, v, at=0, dense=lambda *each: each[2], unsupported="a mask")
    assert torch.equal(out, v)
    assert not engine.stats.engines


def test_a_cpu_is_refused_in_words_at_the_first_call():
    engine, (q, k, v) = SparseAttention(eight_bits()), qkv()
    with pytest.raises(vidsparse.BadInputError, match="eight bits gain on a GPU alone"):
        run(engine, q, k, v, at=0)


def test_an_engine_beside_a_precision_is_refused():
    with pytest.raises(vidsparse.BadInputError, match="leave engine='triton' out"):
        SparseAttention(eight_bits(), engine="triton")


def test_a_preset_that_is_no_faster_in_eight_bits_has_no_such_parameter():
    with pytest.raises(vidsparse.BadInputError, match=r"precision does nothing .*observed"):
        PRESETS["lite"].override({"precision": "int8"})


def test_clusters_and_their_stand_ins_run_in_eight_bits(int8_on_cpu):
    changes = {"density": 0.4, "q_clusters": 4, "kv_clusters": 12, "min_tokens": 0}
    changes |= {"correction": "none"}
    q, k, v = qkv()
    out, same = (
        run(SparseAttention(PRESETS["semantic"].override(changes | more)), q, k, v, at=9)
        for more in ({"precision": "int8"}, {})
    )
    assert 0.001 < float((out - same).norm() / same.norm()) < 0.08


def test_clusters_fit_hopper_whatever_their_blocks_are_tiled_by():
    case = dataclasses.replace(HOPPER, offsets=True, pooled=True, q_block=64, kv_block=64)
    assert not int8_unsupported(case)


def test_another_precision_is_refused():
    with pytest.raises(vidsparse.BadInputError, match="precision"):
        PRESETS["draft"].override({"precision": "int4"})


def test_auto_never_rounds_to_eight_bits():
    assert choose_engine(HOPPER).engine != "int8"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": (7, 5)}, "multiplies no INT8"),
        ({"head_dim": 320}, "head_dim up to 256"),
        ({"needs_grad": True}, "no gradients"),
        ({"arch": (8, 9), "offsets": True}, "on Hopper GPUs alone"),
        ({"q_block": 64}, "give block=128"),
        ({"head_dim": 192}, "in sixteens up to 128"),
    ],
)
def test_reasons(changes, said):
    reasons = int8_unsupported(dataclasses.replace(HOPPER, **changes))
    assert any(said in reason for reason in reasons)


def test_small_blocks_run_where_the_portable_kernel_does():
    found = int8_unsupported(dataclasses.replace(HOPPER, arch=(8, 9), q_block=64, kv_block=64))
    assert not any("block" in reason for reason in found)


def test_dense_steps_by_the_fastest_engine_are_counted(dense_measured_on_cpu):
    preset = PRESETS["draft"].override({"dense": "fastest", "density": 0.5, "min_tokens": 0})
    engine, (q, k, v) = SparseAttention(preset), qkv()
    out = run(engine, q, k, v, at=0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-5)
    assert dict(engine.stats.engines) == {"reference": 1}


def test_where_nothing_was_measured_the_models_own_stays_and_a_note_says_so():
    preset = PRESETS["draft"].override({"dense": "fastest", "min_tokens": 0})
    engine, (q, k, v) = SparseAttention(preset), qkv()
    assert torch.equal(run(engine, q, k, v, at=0, dense=lambda *each: each[2]), v)
    assert any("keep the model's own attention" in note for note in engine.stats.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int8"}, "dense steps run in eight bits"),
        ({"warmup": 0.0}, "no step is dense"),
    ],
)
def test_fastest_dense_steps_are_refused_where_that_does_nothing(changes, said):
    with pytest.raises(vidsparse.BadInputError, match=f"dense does nothing .*{said}"):
        PRESETS["draft"].override({"dense": "fastest"} | changes)
