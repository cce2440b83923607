"""The engine: dense when told, sparse when asked, and every fallback counted."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse import sparsify
from vidsparse.errors import BadInputError, DenseFallbackError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.kernels.planning.pooling import pool_blocks
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 5, 6)  # 120 tokens: eight blocks of 16, the last one short
CALL = Call(grid=GRID, layer=0, step=3, progress=Progress.alone(0.5))


def preset(name="draft", **changes):
    settings = {"block": 16, "min_tokens": 0, "warmup": 0.1, "ramp_until": 0.1}
    settings["dense_layers"] = 0
    if name in ("lite", "lite-attention", "auto"):
        changes.pop("density", None)  # they decide for themselves
    if name == "psa" or "block" not in PRESETS[name].parameters():
        del settings["block"]  # 128 for means of eight tokens, and clusters have none
    return PRESETS[name].override(settings | changes)


def qkv(batch=1, heads=2, seq=GRID.tokens, head_dim=8):
    return [torch.randn(batch, seq, heads, head_dim) for _ in range(3)]


class Dense:
    """The model's own attention; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, q, k, v):
        self.calls += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@pytest.fixture
def dense():
    return Dense()


def test_a_sparse_call_differs_from_dense_and_is_recorded(dense):
    engine = SparseAttention(preset(density=0.25))
    q, k, v = qkv()
    out = engine(q, k, v, CALL, dense)
    assert dense.calls == 0
    assert not torch.allclose(out, dense(q, k, v), atol=1e-3)
    assert engine.stats.mean_density == pytest.approx(0.25, abs=0.02)
    assert not engine.stats.fallbacks
    assert [(key.step, key.layer, key.branch) for key in engine.stats.calls] == [
        (3, 0, "transformer/cond")
    ]


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({"density": 1.0}, {}),
        ({}, {"progress": Progress.alone(0.05)}),
        ({"dense_layers": 1}, {}),
    ],
    ids=["density 1", "the warm-up", "a dense layer"],
)
def test_what_the_schedule_wants_dense_is_the_models_own_attention(dense, changes, call):
    engine = SparseAttention(preset(**changes), strict=True)
    q, k, v = qkv()
    out = engine(q, k, v, dataclasses.replace(CALL, **call), dense)
    assert dense.calls == 1
    assert torch.equal(out, dense(q, k, v))
    assert engine.stats.mean_density == 1
    assert not engine.stats.fallbacks


FALLBACKS = [
    ({}, {"unsupported": "the model sings"}, "the model sings"),
    ({}, {"grid": None}, "the token grid of this call is unknown"),
    ({}, {"grid": TokenGrid(4, 5, 7)}, "120 queries and 120 keys do not fit the grid 4x5x7"),
    ({}, {"progress": None}, "how far the run has come at this step is unknown"),
    ({"min_tokens": 1121}, {}, "120 tokens are too few to gain (min_tokens is 1,121)"),
]
FALLBACK_IDS = ["plug-in", "no grid", "wrong grid", "no progress", "too short"]


@pytest.mark.parametrize(("changes", "call", "reason"), FALLBACKS, ids=FALLBACK_IDS)
def test_each_fallback_is_dense_and_counted_by_its_reason(dense, changes, call, reason):
    engine = SparseAttention(preset(**changes))
    q, k, v = qkv()
    call = dataclasses.replace(CALL, **call)
    engine(q, k, v, call, dense)
    out = engine(q, k, v, call, dense)
    assert engine.stats.fallbacks == {reason: 2}
    assert engine.stats.mean_density == 1
    assert torch.equal(out, dense(q, k, v))


@pytest.mark.parametrize("changes", [{"min_tokens": 1121}, {"min_tokens": 1121, "density": 1.0}])
def test_a_call_that_is_dense_anyway_is_no_fallback(dense, changes):
    engine = SparseAttention(preset(**changes), strict=True)
    q, k, v = qkv()
    engine(q, k, v, dataclasses.replace(CALL, progress=Progress.alone(0.01)), dense)
    assert not engine.stats.fallbacks
    assert engine.stats.mean_density == 1


@pytest.mark.parametrize(("changes", "call", "reason"), FALLBACKS, ids=FALLBACK_IDS)
def test_strict_raises_where_it_would_fall_back(dense, changes, call, reason):
    engine = SparseAttention(preset(**changes), strict=True)
    q, k, v = qkv()
    with pytest.raises(DenseFallbackError) as error:
        engine(q, k, v, dataclasses.replace(CALL, **call), dense)
    assert f"layer 0 at step 3 cannot be sparse: {reason}; run without strict" in str(error.value)
    assert dense.calls == 0


def test_cross_attention_does_not_fit_the_grid(dense):
    engine = SparseAttention(preset())
    q, (k, v, _) = qkv()[0], qkv(seq=77)
    engine(q, k, v, CALL, dense)
    assert engine.stats.fallbacks == {"120 queries and 77 keys do not fit the grid 4x5x6": 1}


def test_an_unknown_engine_is_refused_at_once():
    with pytest.raises(BadInputError, match="unknown engine 'fast'"):
        SparseAttention(preset(), engine="fast")


@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_of_two_equals_its_halves(dense, name):
    engine = SparseAttention(preset(name, density=0.4))
    q, k, v = qkv(batch=2)
    whole = engine(q, k, v, CALL, dense)
    halves = [
        SparseAttention(engine.preset)(q[i : i + 1], k[i : i + 1], v[i : i + 1], CALL, dense)
        for i in (0, 1)
    ]
    torch.testing.assert_close(whole, torch.cat(halves))
    assert dense.calls == 0


@pytest.mark.parametrize("name", ["draft", "radial"])
def test_centroids_make_up_for_skipped_blocks_of_equal_tokens_exactly(dense, name):
    # where all keys and values of a block are its mean, nothing is lost by the mean
    q, k, v = qkv()
    k, v = (
        pool_blocks(x.transpose(1, 2), 16).repeat_interleave(16, 2)[:, :, :120].transpose(1, 2)
        for x in (k, v)
    )
    exact = dense(q, k, v)
    without = SparseAttention(preset(name, density=0.4))
    assert not torch.allclose(without(q, k, v, CALL, dense), exact, atol=1e-3)
    engine = SparseAttention(preset(name, density=0.4, compensation="centroid"))
    torch.testing.assert_close(engine(q, k, v, CALL, dense), exact)
    means = engine.stats.mean_density - without.stats.mean_density
    assert 0 < means <= 8 / 120  # a mean counts as the one key that it is


def test_both_engines_and_a_scale_of_the_models_give_the_same(dense):
    q, k, v = qkv()
    call = dataclasses.replace(CALL, scale=0.11)
    by_cpu, by_reference = (
        SparseAttention(preset(), engine=name)(q, k, v, call, dense)
        for name in ("cpu", "reference")
    )
    torch.testing.assert_close(by_cpu, by_reference)
    default = SparseAttention(preset())(q, k, v, CALL, dense)
    assert not torch.allclose(by_cpu, default, atol=1e-3)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("engine", ["auto", "cpu", "reference"])
def test_every_sparse_call_counts_the_engine_that_ran(dense, name, engine, cpu_engine):
    attention = SparseAttention(preset(name), engine=engine, strict=True)
    works: list[Any] = []
    attention.observers.append(lambda call, work, *tensors: works.append(work))
    q, k, v = qkv()
    for step in range(3):
        attention(q, k, v, dataclasses.replace(CALL, step=step), dense)
    ran = attention.stats.engines
    assert list(ran) == [cpu_engine if engine == "auto" else engine]
    kernels = sum(1 + len(work.levels) for work in works)
    besides = 3 * PRESETS[name].policy.correction.corrects  # exact rows
    besides += name == "re-ttention"  # a residual's measure
    assert ran.total() == kernels + besides == 3 * (1 + 2 * (name == "psa")) + besides


def test_an_engine_that_cannot_observe_says_so():
    with pytest.raises(BadInputError, match="engine 'flex' cannot run this: it does not report"):
        SparseAttention(preset("lite"), engine="flex")


def test_the_random_control_is_the_same_at_every_step_and_not_in_every_layer(dense):
    engine = SparseAttention(preset("random", density=0.3))
    q, k, v = qkv()

    def run(**changes):
        return engine(q, k, v, dataclasses.replace(CALL, **changes), dense)

    assert torch.equal(run(step=0), run(step=7, progress=Progress.alone(0.8)))
    assert not torch.equal(run(), run(layer=1))


@pytest.mark.parametrize("name", PRESETS)
def test_sixty_calls_with_as_many_densities_do_not_grow_the_memory(dense, name):
    engine = SparseAttention(preset(name, density=0.1, ramp_until=0.9))
    q, k, v = qkv()
    sizes = []
    for i in range(60):
        call = Call(grid=GRID, layer=i % 5, step=i, progress=Progress.alone(1 - (0.89 - i / 120)))
        engine(q, k, v, call, dense)
        sizes.append(engine.stats.memory_bytes + engine.stats.host_memory_bytes)
    assert max(sizes[30:]) <= max(sizes[:30])
    # levels and tokens are planned at every call
    assert (max(sizes) > 0) == (name not in ("psa", "vmoba"))


def test_the_ramp_is_followed_by_the_realised_density(dense):
    engine = SparseAttention(preset(density=0.2, ramp_until=0.9))
    grid = TokenGrid(8, 8, 8)  # 32 blocks
    q, k, v = qkv(seq=grid.tokens)
    for step, sigma in enumerate([0.95, 0.7, 0.5, 0.3, 0.05]):
        engine(
            q, k, v, Call(grid=grid, layer=0, step=step, progress=Progress.alone(1 - sigma)), dense
        )
    realised = list(engine.stats.step_density.values())
    assert realised == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=0.5 / 32)


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA GeForce RTX 4090", "another", ""])
@pytest.mark.parametrize("told", [False, True])
def test_calls_that_gain_nothing_on_a_known_gpu_are_dense(dense, monkeypatch, gpu, told):
    monkeypatch.setattr("vidsparse.sparse_attention.name_of", lambda device: gpu)
    grid = TokenGrid(4, 16, 16)
    made = PRESETS["balanced"].override(
        {"mean_density": 0.25} | ({"min_tokens": 0} if told else {})
    )
    engine, strict = (SparseAttention(made, strict=strict) for strict in (False, True))
    q, k, v = qkv(seq=grid.tokens)
    last = list(Progress.first(10).steps())[-1]
    call = Call(grid=grid, layer=0, step=9, progress=last, layers=4)
    engine(q, k, v, call, dense)
    if told or gpu in ("another", ""):
        assert not engine.stats.fallbacks
        assert engine.stats.mean_density < 1
        return
    [reason] = engine.stats.fallbacks
    assert reason.startswith("1,024 tokens are too few to gain on this GPU: a layer takes about")
    assert reason.endswith("with balanced (min_tokens=0 has it sparse)")
    with pytest.raises(DenseFallbackError, match="too few to gain on this GPU"):
        strict(q, k, v, call, dense)


def test_a_mask_that_keeps_all_of_an_image_is_noted(dense):
    engine = SparseAttention(preset("radial"))
    q, k, v = qkv(seq=144)
    for step in range(2):
        call = Call(grid=TokenGrid(1, 12, 12), layer=0, step=step, progress=Progress.alone(0.9))
        engine(q, k, v, call, dense)
    assert list(engine.stats.notes) == [
        "the mask keeps every block of the grid 1x12x12: nothing is saved"
    ]


def test_a_density_that_the_grid_cannot_reach_is_noted_once(dense):
    engine = SparseAttention(preset("radial", density=0.02))
    q, k, v = qkv()
    for step in range(3):
        engine(q, k, v, dataclasses.replace(CALL, step=step), dense)
    (note,) = engine.stats.notes
    assert "the least that this mask allows on the grid 4x5x6 with blocks of 16; 0.02" in note


def test_time_is_measured_and_planning_is_part_of_it(dense):
    engine = SparseAttention(preset())
    q, k, v = qkv()
    engine(q, k, v, CALL, dense)
    assert 0 < engine.stats.plan_seconds < engine.stats.attention_seconds


def test_the_engines_that_exist_are_named_to_the_user():
    assert sparsify.__doc__ is not None
    assert all(f'"{name}"' in sparsify.__doc__ for name in ("auto", *ENGINES))


@pytest.mark.parametrize(("name", "planning"), [("balanced", 1), ("draft", 1), ("semantic", 2)])
def test_drafts_are_made_on_one_thread_and_attention_takes_all(
    dense, name, planning, cpu_engine, monkeypatch
):
    seen = {}

    def note(owner, what, key):
        real = getattr(owner, what)

        def noted(*args, **named):
            seen.setdefault(key, torch.get_num_threads())
            return real(*args, **named)

        monkeypatch.setattr(owner, what, noted)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        attention = SparseAttention(preset(name), engine=cpu_engine)
        note(attention._planner, "work", "planning")
        note(attention, "_attending", "attention")
        q, k, v = qkv()
        attention(q, k, v, CALL, dense)
        assert seen == {"planning": planning, "attention": 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_where_nothing_can_be_compiled_a_note_says_so(dense, monkeypatch):
    q, k, v = qkv()
    for problem in (None, "no compiler"):
        monkeypatch.setattr("vidsparse.kernels.native.build.why_not", lambda said=problem: said)
        attention = SparseAttention(preset("draft"), engine="cpu")
        attention(q, k, v, CALL, dense)
        found = [note for note in attention.stats.notes if "gathers keys" in note]
        assert [note.endswith("native cannot run: no compiler") for note in found] == [True] * bool(
            problem
        )
