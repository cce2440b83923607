"""FreeSwim's full field: by hand in one model, and in the pipelines that it is for."""

import copy
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

import vidsparse
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.compiling import compile_within_hooks

MODELS = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
WINDOW = {
    "min_tokens": 0, "block": 16, "warmup": 0.0, "ramp_until": 0.0, "window_height": 3,
    "window_width": 3, "masks": "token",
}  # fmt: skip


@pytest.fixture
def model(wan):
    return wan.build["one_expert"]().transformer


def freeswim(target):
    return vidsparse.sparsify(target, "freeswim", strict=True, **WINDOW)


def run(model, latents, text, step, branch):
    timestep = torch.tensor([500.0 - step])
    with model.cache_context(branch, step_index=step), torch.no_grad():
        return model(latents, timestep, text, return_dict=False)[0]


def cross_attention(model):
    return [block.attn2 for block in model.blocks]


def kept_of(model, *call):
    """What each cross-attention gives in a dense run."""
    kept: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: kept.append(output))
        for module in cross_attention(model)
    ]
    run(model, *call)
    for hook in hooks:
        hook.remove()
    return kept


def with_its(kept, model, *call):
    """A run with windows, in which each cross-attention gives that instead."""
    hooks = [
        module.register_forward_hook(lambda module, args, output, one=one: one)
        for module, one in zip(cross_attention(model), kept, strict=True)
    ]
    with freeswim(model):
        out = run(model, *call)
    for hook in hooks:
        hook.remove()
    return out


@pytest.mark.parametrize("every", [1, 2])
def test_the_dense_pass_gives_the_cross_attention_of_every_step_that_it_serves(model, every):
    latents = [torch.randn(1, 16, 3, 8, 8) for _ in range(4)]
    prompt, negative = torch.randn(1, 16, 32), torch.randn(1, 16, 32)
    by_hand: list[Any] = []
    for step, x in enumerate(latents):
        at = step - step % every
        kept = kept_of(model, latents[at], prompt, at, "cond")
        by_hand.append(with_its(kept, model, x, prompt, step, "cond"))
        with freeswim(model):
            by_hand.append(run(model, x, negative, step, "uncond"))
            plain = run(model, x, prompt, step, "cond")
        assert not torch.allclose(plain, by_hand[-2], atol=1e-4)
        assert not torch.allclose(plain, run(model, x, prompt, step, "cond"), atol=1e-4)
    with freeswim(model) as session:
        session.full_field(every)
        made = [
            run(model, x, text, step, branch)
            for step, x in enumerate(latents)
            for branch, text in (("cond", prompt), ("uncond", negative))
        ]
    assert all(torch.equal(one, other) for one, other in zip(made, by_hand, strict=True))
    assert len(session.stats.calls) == 2 * 4 * 2  # of two layers: the pass beside is in none


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("one_expert", 2), ("two_experts", 2), ("video_to_video", 1), ("image_to_video", 2)],
)
def test_pipelines_say_which_call_follows_the_prompt(wan, untouched, kind, passes):
    """Three steps, of video_to_video two; each expert has passes of its own."""
    pipe, calls = wan.build[kind](), []
    for name in ("transformer", "transformer_2"):
        if pipe.components.get(name) is not None:
            embedding = pipe.components[name].patch_embedding
            embedding.register_forward_hook(lambda *given: calls.append(given[0]))
    with freeswim(pipe):
        windows = wan.generate(pipe)
    plain = len(calls)
    with freeswim(pipe) as session:
        session.full_field()
        video = wan.generate(pipe)
        assert len(calls) - 2 * plain == passes
        assert sum(field.nbytes > 0 for field in session._full_fields) == 1
        assert torch.equal(wan.generate(pipe), video)  # nothing is left of the one before
        calls.clear()
        wan.generate(pipe, guidance_scale=1.0)  # there is no other call
        assert len(calls) == plain // 2 + passes
    assert not torch.allclose(video, windows, atol=1e-4)
    assert any("once in every 2 steps" in note for note in session.notes)
    with vidsparse.sparsify(pipe, "draft", density=1.0, min_tokens=0) as session:
        session.full_field(1)  # of a dense run, which is its own full field
        assert torch.equal(wan.generate(pipe), untouched(kind))


def test_nothing_stays_after_remove_and_copies_have_none(model):
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    call = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 16, 32), 0, "cond"
    plain = run(model, *call)
    session = freeswim(model)
    session.full_field()
    saved = pickle.dumps(model)
    run(model, *call)
    field = session._full_fields[0]
    assert field.nbytes == 2 * 48 * 24 * 4  # of two layers, 48 tokens of 24 numbers
    for made in (copy.deepcopy(model), pickle.loads(saved)):
        assert torch.equal(run(made, *call), plain)
    session.remove()
    assert field.nbytes == 0
    assert before == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(run(model, *call), plain)


def test_another_size_or_run_has_a_pass_of_its_own(model):
    text = torch.randn(1, 16, 32)
    sizes = [(3, 8, 8), (3, 8, 12), (3, 8, 8)]
    latents = [torch.randn(1, 16, *size) for size in sizes]
    other = copy.deepcopy(model)

    def alone(x, step):
        with freeswim(other) as session:
            session.full_field(8)
            return run(other, x, text, step, "cond")

    with freeswim(model) as session:
        session.full_field(8)
        for step, x in enumerate(latents):
            assert torch.equal(run(model, x, text, step, "cond"), alone(x, step))
        again = latents[1] + 1
        assert torch.equal(run(model, again, text, 0, "cond"), alone(again, 0))


def test_what_cannot_be_is_refused(model):
    call: Any = torch.randn(1, 16, 3, 8, 8), torch.tensor([500.0]), torch.randn(1, 16, 32)
    with freeswim(model) as session:
        with pytest.raises(BadInputError, match="at least 1 step, got every=0"):
            session.full_field(0)
        session.full_field()
        with pytest.raises(BadInputError, match="has a full field already"):
            session.full_field()
        with torch.no_grad(), pytest.raises(BadInputError, match="which call follows the prompt"):
            model(*call)
        with pytest.raises(BadInputError, match="for generating"):
            model(*call)
    with pytest.raises(BadInputError, match="was removed"):
        session.full_field()
    with freeswim(model) as session:
        session.full_field()
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(BadInputError, match="its cache would take"):
            run(model, call[0], call[2], 0, "cond")
        model.disable_cache()
        model.blocks[0].compile()
        with pytest.raises(BadInputError, match="must not be compiled"), torch.no_grad():
            model(*call)
        model.blocks[0]._compiled_call_impl = None
        compile_within_hooks(model, backend="eager")
        with pytest.raises(BadInputError, match="must not be compiled"), torch.no_grad():
            model(*call)


@pytest.mark.parametrize("name", ["LTX-Video", "HunyuanVideo"])
def test_models_of_which_no_such_call_is_known_are_refused(name):
    tiny = MODELS["ltx" if name == "LTX-Video" else "hunyuan_video"]()
    with vidsparse.sparsify(tiny.module, "draft") as session:
        with pytest.raises(BadInputError, match=f"does not know {name}.*takes Wan 2.1 or 2.2"):
            session.full_field()
        assert not session.notes
