"""Training in a session: gradients, checkpoints, compiled code, and what cannot be trained."""

import functools
import gc
import re
import runpy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

import vidsparse
from vidsparse.errors import BadInputError

MODELS = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
    "out_channels": 16, "text_dim": 16, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2,
    "rope_max_seq_len": 32,
}  # fmt: skip
SPARSE: dict[str, Any] = {
    "min_tokens": 0, "warmup": 0.05, "ramp_until": 0.6, "dense_layers": 0, "strict": True,
}  # fmt: skip
LAYERS = 2
PRESETS = ["balanced", "semantic", "auto", "radial", "rectified", "psa", "adaspa", "svg"]
EARLY, LATE, NOISE = 700.0, 300.0, 990.0  # on the ramp, at full sparsity, dense


def sparsify(model, name="balanced", **changes):
    block = {"block": 16} if "block" in vidsparse.PRESETS[name].parameters() else {}
    settings: dict[str, Any] = block | SPARSE | changes
    if vidsparse.PRESETS[name].policy.mean_density is not None:  # out of reach with such a ramp
        settings = {"density": 0.25} | settings
    return vidsparse.sparsify(model, name, **settings)


def wan(**changes):
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(**(WAN | changes))  # type: ignore[attr-defined]


def loss_of(model, time=LATE, seed=1):
    draw = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(s, generator=draw) for s in ((1, 16, 4, 16, 24), (1, 7, 16)))
    out = model(latents, torch.tensor([time]), text, return_dict=False)[0]
    return (out * torch.randn(out.shape, generator=draw)).mean()


def gradients(model):
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return made


def trained(model, time=LATE):
    loss_of(model, time).backward()
    return gradients(model)


def assert_same(made, expected, **tolerances):
    assert made.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(made[name], gradient, **(tolerances or {"atol": 1e-7})), name


def differ(made, expected):
    return any(not torch.allclose(made[k], expected[k], rtol=1e-3, atol=1e-6) for k in expected)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_plan_that_keeps_everything_has_the_gradients_of_dense_attention(cpu_engine):
    model = wan()
    dense = trained(model)
    with sparsify(model, "draft", density=0.999) as session:
        whole = trained(model)
        assert session.stats.mean_density == 1
        assert session.stats.engines == {cpu_engine: LAYERS}
    assert_same(whole, dense, rtol=1e-3, atol=1e-7)
    with sparsify(model, "draft", density=0.2):
        assert differ(trained(model), dense)


REENTRANT = [True, False]


def checkpointed(model, reentrant):
    model.enable_gradient_checkpointing(functools.partial(call_checkpoint, reentrant))
    return model


def call_checkpoint(reentrant, module, *args, **kwargs):
    """As ``enable_gradient_checkpointing`` of diffusers does, either way."""
    call = functools.partial(module.__call__, **kwargs) if kwargs else module.__call__
    return checkpoint(call, *args, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("time", [EARLY, LATE, NOISE])
@pytest.mark.parametrize("name", PRESETS)
def test_checkpoints_change_nothing(name, time, reentrant):
    model = wan()
    with sparsify(model, name):
        expected = trained(model, time)
    checkpointed(model, reentrant)
    with sparsify(model, name) as session:
        made = trained(model, time)
        assert len(session.stats.calls) == LAYERS
        assert session.stats.generations == 1
        assert sum(session.stats.engines.values()) <= 3 * LAYERS  # psa runs each of its levels
    assert_same(made, expected)


KINDS = (
    "mochi", "hunyuan_video_batch", "allegro_masked", "motif_video", "lumina2", "flux", "sd3",
    "qwen_image", "z_image", "omnigen",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_models_that_mask_stack_or_take_entries_one_by_one(kind):
    tiny = MODELS[kind]()
    model, inputs = tiny.module.requires_grad_(True), tree_map(detached, dict(tiny.inputs))

    def loss():
        out = [x for x in tree_leaves(model(**inputs)) if isinstance(x, torch.Tensor)]
        return torch.stack([x.square().mean() for x in out]).sum()

    loss().backward()
    dense = gradients(model)
    with sparsify(model, "draft", density=0.3) as session:
        loss().backward()
        expected, engines = gradients(model), dict(session.stats.engines)
    assert differ(expected, dense)
    checkpointed(model, False)
    with sparsify(model, "draft", density=0.3) as session:
        loss().backward()
        assert dict(session.stats.engines) == engines
    assert_same(gradients(model), expected, rtol=1e-4, atol=1e-7)


def detached(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


ORDERS = {
    "oldest first": lambda first, second: [first, second],
    "latest first": lambda first, second: [second, first],
    "both at once": lambda first, second: [first + second],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("name", ["semantic", "radial"])
def test_each_backward_pass_recomputes_its_own_forward_call(name, reentrant, order):
    model = wan()
    with sparsify(model, name):
        early, late = trained(model, EARLY), trained(model, LATE)
    assert differ(early, late)
    checkpointed(model, reentrant)
    with sparsify(model, name) as session:
        first, second = loss_of(model, EARLY), loss_of(model, LATE)
        counted = dict(session.stats.engines)
        with torch.no_grad():
            loss_of(model, NOISE)  # a look at how it goes in between
        for loss in ORDERS[order](first, second):
            loss.backward()
        assert dict(session.stats.engines) == counted  # without what was recomputed or dense
    both = {name: early[name] + late[name] for name in early}
    assert_same(gradients(model), both, rtol=1e-4, atol=1e-7)


def test_a_backward_pass_can_be_made_twice():
    model = checkpointed(wan(), False)
    with sparsify(model, "semantic"):
        loss = loss_of(model, EARLY)
        trained(model, LATE)
        loss.backward(retain_graph=True)
        once = gradients(model)
        loss.backward()
    assert_same(gradients(model), once)


def test_a_checkpoint_around_the_whole_model(cpu_engine):
    model = wan()
    with sparsify(model, "semantic") as session:
        expected = trained(model)
        loss = checkpoint(loss_of, model, EARLY, use_reentrant=False)
        other = checkpoint(loss_of, model, LATE, use_reentrant=False)
        generations = session.stats.generations
        gradients(model)
        loss.backward()
        gradients(model)
        other.backward()
        assert session.stats.generations == generations == 3
        assert session.stats.engines == {cpu_engine: 3 * LAYERS * 2}  # a plan, and exact rows
    assert_same(gradients(model), expected)


def test_a_reentrant_checkpoint_around_the_whole_model_is_refused():
    model = wan()
    with sparsify(model, "semantic"):
        before = loss_of(model, EARLY)
        weight = torch.ones((), requires_grad=True)
        loss = checkpoint(lambda w: loss_of(model) * w, weight, use_reentrant=True)
        with pytest.raises(BadInputError, match="no reentrant checkpoint around the whole model"):
            loss.backward()
        before.backward()


def test_two_calls_in_one_checkpoint_are_refused():
    model = wan()
    with sparsify(model, "semantic"):
        loss = checkpoint(lambda: loss_of(model, EARLY) + loss_of(model, LATE), use_reentrant=False)
        with pytest.raises(BadInputError, match="more than one call of the transformer"):
            loss.backward()


def test_a_forward_call_from_before_the_session_is_not_recomputed_in_it():
    model = checkpointed(wan(), False)
    loss = loss_of(model)
    with sparsify(model), pytest.raises(BadInputError, match="has not seen with gradients"):
        loss.backward()


def test_nothing_is_kept_once_the_graph_is_gone():
    model = checkpointed(wan(), False)
    with sparsify(model) as session:
        loss_of(model).backward()
        loss = loss_of(model)
        gc.collect()
        (forward,) = {layer._forward for layer in layers_of(model)}
        assert len(forward.recordings._known) == 1
        del loss
        gc.collect()
        assert not len(forward.recordings._known)
        assert session.active


def layers_of(model):
    found = (vars(module).get("_vidsparse_layer") for module in model.modules())
    return [layer for layer in found if layer is not None]


@pytest.mark.parametrize("name", ["adaspa", "semantic", "auto", "paro"])
def test_nothing_of_another_step_is_used(name):
    """These keep plans, clusters or choices from step to step when they generate."""
    model = wan()
    with sparsify(model, name):
        expected = trained(model, LATE)
    with sparsify(model, name):
        with torch.no_grad():
            loss_of(model, EARLY, seed=2)
            loss_of(model, LATE, seed=2)
        made = trained(model, LATE)
        trained(model, LATE - 1)
        again = trained(model, LATE)
    assert_same(made, expected)
    assert_same(again, expected)


@pytest.mark.parametrize("name", ["radial", "sta", "clear", "psa", "balanced", "rectified"])
def test_plans_of_a_run_under_inference_mode_can_be_trained_with(name):
    model = wan()
    with sparsify(model, name):
        expected = trained(model)
    with sparsify(model, name):
        with torch.inference_mode():
            loss_of(model)
        assert_same(trained(model), expected)


@pytest.mark.parametrize(
    ("name", "what"), [("re-ttention", "a residual"), ("lite", "the blocks that mattered")]
)
@pytest.mark.parametrize("time", [LATE, NOISE])
def test_what_lives_on_earlier_steps_is_refused_in_a_sentence(name, what, time):
    model = checkpointed(wan(), True)
    sentence = re.escape(
        f"preset {name!r} keeps {what} from one denoising step to the next, and training has no "
        "such steps: choose another preset, or call the model under torch.no_grad()"
    )
    changes = {} if name == "re-ttention" else {"rotate": 0.01}
    with sparsify(model, name, **changes):
        with pytest.raises(BadInputError, match=sentence):
            loss_of(model, time)
        with torch.no_grad():
            assert loss_of(model, time).isfinite()


def whole(model, backend):
    return torch.compile(model, fullgraph=True, backend=backend)


def blocks(model, backend):
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    return model


WAYS = [(whole, None), (whole, False), (blocks, None), (blocks, False), (blocks, True)]


@pytest.mark.parametrize(("way", "reentrant"), WAYS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
def test_compiled_code_has_the_same_gradients(backend, way, reentrant, cpu_engine):
    """Torch wants that option before it compiles a checkpoint around anything with a hook."""
    model = wan()
    with sparsify(model, "semantic"):
        expected = [trained(model, time) for time in (EARLY, LATE, NOISE)]
    if reentrant is not None:
        checkpointed(model, reentrant)
    with sparsify(model, "semantic") as session:
        compiled = way(model, backend)
        losses = [loss_of(compiled, time) for time in (EARLY, LATE, NOISE)]
        engines = dict(session.stats.engines)
        for loss, truth in zip(losses, expected, strict=True):  # the oldest first
            loss.backward()
            assert_same(gradients(model), truth, rtol=1e-3, atol=1e-6)
        assert dict(session.stats.engines) == engines == {cpu_engine: 2 * LAYERS * 2}
        assert not session.stats.fallbacks


def test_compiled_code_says_when_what_it_saved_was_moved():
    model = blocks(wan(), "eager")
    with sparsify(model, "semantic"):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda x: x):
            loss = loss_of(model)  # as offloading saved tensors does
        with pytest.raises(BadInputError, match="not known any more: call backward"):
            loss.backward()
