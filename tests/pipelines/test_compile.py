"""A session under torch.compile: one graph, no break, no compilation after the first step."""

from typing import Any

import diffusers
import pytest
import torch
from torch._dynamo.utils import counters

import vidsparse
from vidsparse.errors import BadInputError
from vidsparse.pipelines.compiled import is_compiled
from vidsparse.pipelines.running.compiling import compile_blocks as compile_blocks_of
from vidsparse.pipelines.running.compiling import compile_within_hooks

WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
    "out_channels": 16, "text_dim": 16, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2,
    "rope_max_seq_len": 32,
}  # fmt: skip
SPARSE: dict[str, Any] = {
    "min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.05, "ramp_until": 0.05,
    "strict": True,
}  # fmt: skip
TIMES = (990.0, 700.0, 500.0)  # the first is dense by the schedule
LAYERS = 2


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def wan():
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(**WAN).eval()  # type: ignore[attr-defined]


def sd3():
    """Calls torch's attention itself; text after the image."""
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(  # type: ignore[attr-defined]
        sample_size=32, patch_size=1, in_channels=4, num_layers=LAYERS, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        pooled_projection_dim=64, out_channels=4,
    ).eval()  # fmt: skip


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def steps(model, inside=None):
    """The output of each step, and how many graphs there were after it."""
    kind = inside or model
    outputs, graphs = [], []
    for time in TIMES:
        if "SD3" in type(kind).__name__:
            inputs = {"pooled_projections": randn(1, 64), "hidden_states": randn(1, 4, 10, 14)}
            text = randn(1, 7, 32)
        else:
            inputs, text = {"hidden_states": randn(1, 16, 3, 10, 14)}, randn(1, 7, 16)
        made = model(
            **inputs, timestep=torch.tensor([time]), encoder_hidden_states=text, return_dict=False
        )
        outputs.append(made[0])
        graphs.append(counters["stats"].get("unique_graphs", 0))
    return outputs, graphs


def compile_whole(model, backend):
    return torch.compile(model, fullgraph=True, backend=backend)


def compile_in_place(model, backend):
    model.compile(fullgraph=True, backend=backend)
    return model


def compile_blocks(model, backend):
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    return model


CASES = [(wan, compile_whole), (wan, compile_in_place), (wan, compile_blocks), (sd3, compile_whole)]


@pytest.mark.parametrize(("build", "way"), CASES)
@pytest.mark.parametrize("first", ["compiled", "attached"])
def test_one_graph_serves_all_layers_and_steps(build, way, first):
    eager = build()
    dense, _ = steps(eager)
    with vidsparse.sparsify(eager, "draft", **SPARSE):
        sparse, _ = steps(eager)
    model = build()
    compiled = way(model, "eager") if first == "compiled" else model
    if first == "compiled":
        torch.testing.assert_close(steps(compiled, model)[0], dense)
    before = counters["stats"].get("unique_graphs", 0)
    with vidsparse.sparsify(model, "draft", **SPARSE) as session:
        if first == "attached":
            compiled = way(model, "eager")
        outputs, graphs = steps(compiled, model)
        assert len(session.stats.calls) == LAYERS * len(TIMES)
        assert session.stats.mean_density < 1
        assert not session.stats.fallbacks
    torch.testing.assert_close(outputs, sparse)
    assert not torch.allclose(outputs[-1], dense[-1], atol=1e-5)
    assert graphs == [before + 1] * len(TIMES)
    assert not counters["graph_break"]
    torch.testing.assert_close(steps(compiled, model)[0], dense)  # the session has gone


@pytest.mark.parametrize(("build", "way"), CASES)
def test_later_sessions_run_what_the_first_compiled(build, way):
    model = build()
    dense, _ = steps(model)
    with vidsparse.sparsify(model, "draft", **SPARSE):
        sparse, _ = steps(model)
    with vidsparse.sparsify(model, "balanced", **SPARSE):
        other, _ = steps(model)
    compiled = way(model, "eager")
    found = []
    for name, expected in (("draft", sparse), ("balanced", other), ("draft", sparse)) * 3:
        with vidsparse.sparsify(model, name, **SPARSE) as session:
            outputs, graphs = steps(compiled, model)
            assert len(session.stats.calls) == LAYERS * len(TIMES)
            assert session.stats.mean_density < 1
            assert not session.stats.fallbacks
        torch.testing.assert_close(outputs, expected)
        found += graphs
        torch.testing.assert_close(steps(compiled, model)[0], dense)
    assert set(found[len(TIMES) :]) == {found[len(TIMES)]}  # and one for what is dense
    assert not counters["graph_break"]


def test_blocks_that_diffusers_does_not_name_are_compiled_within_hooks():
    model = sd3()
    with pytest.raises(BadInputError, match="does not know which blocks of SD3Transformer2DModel"):
        compile_blocks_of(model)
    with vidsparse.sparsify(model, "draft", **SPARSE):
        sparse, _ = steps(model)
    compile_within_hooks(model, backend="eager", fullgraph=True)
    assert is_compiled(model)
    with vidsparse.sparsify(model, "draft", **SPARSE):
        outputs, graphs = steps(model)
    torch.testing.assert_close(outputs, sparse)
    assert graphs == [2] * len(TIMES)  # the last block makes no text
    assert not counters["graph_break"]


def test_a_second_model_hears_of_its_session_while_another_is_active():
    first, second = wan(), wan()
    compile_blocks(first, "eager")
    compile_blocks(second, "eager")
    with vidsparse.sparsify(first, "draft", **SPARSE) as one:
        steps(first)
        steps(second)
        with vidsparse.sparsify(second, "draft", **SPARSE) as two:
            steps(second)
            assert len(two.stats.calls) == LAYERS * len(TIMES)
        assert len(one.stats.calls) == LAYERS * len(TIMES)


def test_what_is_around_the_op_is_traced_ahead_of_time():
    model = wan()
    with vidsparse.sparsify(model, "draft", **SPARSE):
        sparse, _ = steps(model)
        compile_blocks(model, "aot_eager")
        outputs, _ = steps(model)
    torch.testing.assert_close(outputs, sparse, rtol=1e-4, atol=1e-5)


def test_a_dense_call_in_compiled_code_is_counted():
    model = compile_blocks(wan(), "eager")
    with vidsparse.sparsify(
        model, "draft", **(SPARSE | {"min_tokens": 10_000, "strict": False})
    ) as s:
        steps(model)
    assert list(s.stats.fallbacks.values()) == [LAYERS * 2]
