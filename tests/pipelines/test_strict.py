"""Attention that ran without us is counted, or refused by a strict session; and nothing is left."""

import copy
import io
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vidsparse
from vidsparse.pipelines import taps

SPARSE: dict[str, Any] = {
    "min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.0, "ramp_until": 0.0
}  # fmt: skip


def sparsify(pipe, **changes):
    return vidsparse.sparsify(pipe, "draft", **(SPARSE | changes))


class ByHand:
    """A user's processor that computes attention by itself."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, mask=None, rotary=None):
        q, k, v = (to(hidden_states) for to in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def reasons(session):
    return list(session.stats.fallbacks)


@pytest.mark.parametrize("before", [True, False])
def test_a_processor_that_computes_by_itself_is_counted(wan, before):
    """Set before the session, in a module that imports F, or within it."""
    pipe = wan.build["one_expert"]()
    assert F is not None
    if before:
        pipe.transformer.blocks[1].attn1.processor = ByHand()
    with sparsify(pipe) as session:
        pipe.transformer.blocks[1].attn1.processor = ByHand()
        wan.generate(pipe)
    assert reasons(session) == ["its processor ByHand computes attention by itself"]
    assert session.stats.fallbacks.total() == 6  # two branches, three steps
    assert session.stats.layer_density[0] < session.stats.layer_density[1] == 1
    assert len(session.stats.calls) == 12


@pytest.mark.parametrize("before", [True, False])
def test_a_strict_session_refuses_it(wan, untouched, before):
    pipe = wan.build["one_expert"]()
    original = pipe.transformer.blocks[1].attn1.processor
    if before:
        pipe.transformer.blocks[1].attn1.processor = ByHand()
    with sparsify(pipe, strict=True):
        pipe.transformer.blocks[1].attn1.processor = ByHand()
        with pytest.raises(vidsparse.DenseFallbackError, match=r"layer 1 .* processor ByHand"):
            wan.generate(pipe)
    pipe.transformer.blocks[1].attn1.processor = original
    assert torch.equal(wan.generate(pipe), untouched("one_expert"))


def test_a_forward_method_put_over_a_layer_is_counted(wan):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe) as session:
        attention = pipe.transformer.blocks[0].attn1
        attention.forward = lambda x, *_, **__: x
        wan.generate(pipe)
        del attention.forward
    assert len(reasons(session)) == 1
    assert session.stats.fallbacks.total() == 6


@pytest.mark.parametrize("strict", [True, False])
def test_a_transformer_assigned_anew_is_counted(wan, strict):
    pipe, other = wan.build["one_expert"](), wan.build["one_expert"]()
    with sparsify(pipe, strict=strict) as session:
        wan.generate(other)  # which is another pipeline's own affair
        assert not session.stats.fallbacks
        pipe.transformer = wan.build["one_expert"]().transformer
        if strict:
            with pytest.raises(vidsparse.DenseFallbackError, match="assigned anew in the session"):
                wan.generate(pipe)
        else:
            wan.generate(pipe)
            assert "transformer was assigned anew" in reasons(session)[0]
            assert session.stats.fallbacks.total() >= 12
        assert "assigned anew" in session.notes[0]
        assert "assigned anew" in session.summary()
    assert taps.tapped_modules() == []


def test_what_a_cache_kept_from_running_is_nobodys_loss(wan):
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

    pipe = wan.build["one_expert"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
    with sparsify(pipe, strict=True) as session:
        wan.generate(pipe)
    assert len(session.stats.calls) < 12


def test_the_session_of_a_pipeline_can_be_found(wan, untouched):
    pipe = wan.build["one_expert"]()
    assert vidsparse.session_of(pipe) is None
    sparsify(pipe)  # which nobody keeps
    found = vidsparse.session_of(pipe)
    assert found is vidsparse.session_of(pipe.transformer)
    assert found is not None
    wan.generate(pipe)
    assert found.stats.mean_density < 1
    found.remove()
    assert vidsparse.session_of(pipe) is None
    assert torch.equal(wan.generate(pipe), untouched("one_expert"))
    with pytest.raises(vidsparse.BadInputError, match="has no transformer"):
        vidsparse.session_of(SimpleNamespace())


def test_a_transformer_can_be_saved_whole_in_a_session(wan, untouched):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe, min_tokens=0) as session:
        wan.generate(pipe)  # diffusers keeps the hooks of all children from then on
        file = io.BytesIO()
        torch.save(pipe.transformer, file)
        copied = pickle.loads(pickle.dumps(pipe.transformer))
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        calls = len(session.stats.calls)
        for each in (loaded, copied, copy.deepcopy(pipe.transformer)):
            other = wan.build["one_expert"]()
            other.transformer = each
            assert torch.equal(wan.generate(other), untouched("one_expert"))
        assert len(session.stats.calls) == calls
    with sparsify(other) as again:
        wan.generate(other)
    assert again.stats.mean_density < 1


class Interrupter:
    """Raises KeyboardInterrupt at one line of our plug-in, as Ctrl-C would."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, arg):
        if not frame.f_globals.get("__name__", "").startswith("vidsparse.pipelines."):
            return self
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def interrupted(act, at):
    """Whether an action was interrupted at its nth line."""
    tracer, before = Interrupter(at), sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    assert tracer.lines < at
    return False


def traces(module):
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs")
    return {
        path: (
            sorted(vars(child).keys() - {"_diffusers_hook"}),
            list(child._modules),
            [len(getattr(child, name)) for name in hooks],
        )
        for path, child in module.named_modules()
    }


def test_ctrl_c_while_a_session_opens_leaves_nothing_behind(wan):
    transformer = wan.build["one_expert"]().transformer
    before, at, step = traces(transformer), 1, 1
    while interrupted(lambda: sparsify(transformer), at):
        left = vidsparse.session_of(transformer)
        if left is not None:  # after it was open: whoever has the pipeline finds it
            left.remove()
        assert traces(transformer) == before
        assert taps.tapped_modules() == []
        at, step = at + step, step + at // 100  # every line at first, then fewer
    session = vidsparse.session_of(transformer)
    assert session is not None
    session.remove()


def test_ctrl_c_while_a_session_closes_waits_until_it_is_closed(wan):
    transformer = wan.build["one_expert"]().transformer
    before, at = traces(transformer), 1
    while True:
        session = sparsify(transformer)
        was_cut = interrupted(session.remove, at)
        session.remove()
        assert traces(transformer) == before
        assert taps.tapped_modules() == []
        assert vidsparse.session_of(transformer) is None
        if not was_cut:
            break
        at += 1
    assert at > 10
