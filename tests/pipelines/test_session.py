"""The plug-in on whole pipelines: in, out, and what it did in between."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import vidsparse
from vidsparse.pipelines import taps
from vidsparse.sparse_attention import SparseAttention

KINDS = [
    "one_expert",
    "two_experts",
    "per_token_timesteps",
    "image_to_video",
    "video_to_video",
    "shipped",
]
SPARSE = {"min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.05, "ramp_until": 0.05}
LAYERS = {"shipped": 8}  # the others have two


def sparsify(pipe, preset="draft", *, strict=False, **changes):
    return vidsparse.sparsify(pipe, preset, strict=strict, **(SPARSE | changes))


def traces(pipe):
    """All that a session could leave behind: attributes, child modules, hooks, weights."""
    found = {}
    for name in ("transformer", "transformer_2"):
        module = pipe.components.get(name)
        if module is None:
            continue
        for path, child in module.named_modules():
            hooks = [list(child._forward_pre_hooks), list(child._forward_hooks)]
            # diffusers' caches make this registry on demand, and it stays
            attributes = sorted(vars(child).keys() - {"_diffusers_hook"})
            assert "forward" not in attributes
            found[name, path] = (attributes, list(child._modules), hooks)
        found[name, "weights"] = list(module.state_dict())
    return found


def assert_clean(pipe):
    assert taps.tapped_modules() == []
    assert taps.current.layer is None
    assert not any("vidsparse" in str(trace) for trace in traces(pipe).items())


@pytest.mark.parametrize("kind", KINDS)
def test_density_one_equals_the_untouched_pipeline_exactly(wan, untouched, kind):
    pipe = wan.build[kind]()
    with sparsify(pipe, density=1.0, strict=True) as session:
        assert torch.equal(wan.generate(pipe), untouched(kind))
    assert session.stats.mean_density == 1
    assert session.stats.dense_steps_share == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_run_changes_the_video_and_removal_restores_it(wan, untouched, kind):
    pipe = wan.build[kind]()
    wan.generate(pipe)
    before = traces(pipe)
    session = sparsify(pipe, strict=True)
    assert session.active
    assert taps.tapped_modules() == ["diffusers.models.transformers.transformer_wan"]
    video = wan.generate(pipe)
    assert not torch.allclose(video, untouched(kind), atol=1e-3)
    session.remove()
    session.remove()
    assert not session.active
    assert_clean(pipe)
    assert traces(pipe) == before
    assert torch.equal(wan.generate(pipe), untouched(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_layer_and_branch_of_every_expert_is_recorded(wan, kind):
    pipe = wan.build[kind]()
    with sparsify(pipe) as session:
        wan.generate(pipe)
    stats = session.stats
    branches = ("call0", "call1") if kind == "video_to_video" else ("cond", "uncond")
    steps = range(2 if kind == "video_to_video" else 3)  # strength 0.75 of three steps
    expected = {
        (step, layer, f"{'transformer_2' if kind == 'two_experts' and step else 'transformer'}/{b}")
        for step in steps
        for layer in range(LAYERS.get(kind, 2))
        for b in branches
    }
    assert {(key.step, key.layer, key.branch) for key in stats.calls} == expected
    assert len(stats.calls) == len(expected)
    sigmas = [stats.sigmas[step] for step in steps]
    assert sigmas == sorted(set(sigmas), reverse=True)
    assert 0 < min(sigmas) <= max(sigmas) <= 1
    dense = [density >= 1 for density in stats.step_density.values()]
    assert dense == [kind != "video_to_video" and step == 0 for step in steps]
    assert not stats.fallbacks


def test_video_to_video_has_only_the_timestep_to_read_noise_from(wan):
    pipe, other = wan.build["video_to_video"](), wan.build["video_to_video"]()
    with sparsify(pipe) as session:
        wan.generate(other)
        assert session.stats.calls == {}
        wan.generate(pipe)
    assert session.stats.sigmas == pytest.approx({0: 0.857, 1: 0.6}, abs=1e-3)


@pytest.mark.parametrize("kind", ["one_expert", "two_experts"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1])
def test_an_exception_between_steps_leaves_the_pipeline_clean(wan, untouched, kind, error, at):
    pipe = wan.build[kind]()

    def stop(pipe, step, timestep, tensors):
        if step == at:
            raise error
        return tensors

    with pytest.raises(error), sparsify(pipe):
        wan.generate(pipe, callback_on_step_end=stop)
    assert_clean(pipe)
    assert torch.equal(wan.generate(pipe), untouched(kind))


@pytest.mark.parametrize("at", [0, 1])
def test_a_session_goes_on_after_an_exception_as_if_it_were_new(wan, at):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe) as session:
        expected = wan.generate(pipe)

    def stop(pipe, step, timestep, tensors):
        if step == at:
            raise KeyboardInterrupt
        return tensors

    with sparsify(pipe) as again:
        with pytest.raises(KeyboardInterrupt):
            wan.generate(pipe, callback_on_step_end=stop)
        assert torch.equal(wan.generate(pipe), expected)
        assert again.stats.calls.keys() == session.stats.calls.keys()
        assert again.stats.generations == 2


def test_an_exception_inside_attention_does_not_reach_other_pipelines(wan, untouched):
    pipe, other = wan.build["one_expert"](), wan.build["one_expert"]()
    with sparsify(pipe, min_tokens=10_000, strict=True):
        with pytest.raises(vidsparse.DenseFallbackError, match="too few to gain"):
            wan.generate(pipe)
        assert taps.current.layer is None
        assert torch.equal(wan.generate(other), untouched("one_expert"))
    assert_clean(pipe)
    assert torch.equal(wan.generate(pipe), untouched("one_expert"))


def test_two_sessions_live_side_by_side(wan, untouched):
    first, second = wan.build["one_expert"](), wan.build["two_experts"]()
    alone = []
    for pipe in (first, second):
        with sparsify(pipe):
            alone.append(wan.generate(pipe))
    one, two = sparsify(first), sparsify(second)
    assert torch.equal(wan.generate(first), alone[0])
    assert torch.equal(wan.generate(second), alone[1])
    one.remove()
    assert torch.equal(wan.generate(first), untouched("one_expert"))
    assert torch.equal(wan.generate(second), alone[1])
    assert (one.stats.generations, two.stats.generations) == (1, 2)
    two.remove()
    assert_clean(first)
    assert_clean(second)


def test_a_second_session_on_a_pipeline_is_refused_and_the_first_goes_on(wan):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe) as session:
        expected = wan.generate(pipe)
        for target in (pipe, pipe.transformer):
            with pytest.raises(vidsparse.BadInputError, match="already has a vidsparse session"):
                sparsify(target)
        assert torch.equal(wan.generate(pipe), expected)
        assert session.stats.mean_density < 1
    assert_clean(pipe)


def test_one_transformer_in_both_places_is_attached_once(wan):
    pipe = wan.build["one_expert"]()
    before = traces(pipe)
    both = SimpleNamespace(components=pipe.components | {"transformer_2": pipe.transformer})
    with sparsify(both) as session:
        wan.generate(pipe)
        assert session.stats.mean_density < 1
    assert traces(pipe) == before
    assert_clean(pipe)


def test_a_removed_session_cannot_be_entered(wan):
    session = sparsify(wan.build["one_expert"]())
    session.remove()
    with pytest.raises(vidsparse.BadInputError, match="was removed"), session:
        pass


class Rotary(nn.Module):
    """A transformer that no row of the table knows."""


class OwnProcessor:
    """Of this file, which does not call diffusers' attention."""


def test_what_is_no_pipeline_is_refused(wan):
    with pytest.raises(
        vidsparse.BadInputError, match="object has no transformer: pass a diffusers"
    ):
        sparsify(object())
    with pytest.raises(
        vidsparse.BadInputError, match="does not know the transformer Rotary; it kn"
    ):
        sparsify(Rotary())


def test_an_unknown_second_transformer_leaves_the_first_untouched(wan):
    pipe = wan.build["one_expert"]()
    before = traces(pipe)
    both = SimpleNamespace(components=pipe.components | {"transformer_2": Rotary()})
    with pytest.raises(vidsparse.BadInputError, match="does not know the transformer Rotary"):
        sparsify(both)
    assert traces(pipe) == before
    assert_clean(pipe)


def test_attention_that_cannot_be_tapped_is_refused_with_nothing_left(wan):
    pipe = wan.build["two_experts"]()
    before = traces(pipe)
    pipe.transformer_2.blocks[1].attn1.processor = OwnProcessor()
    with pytest.raises(
        vidsparse.BadInputError,
        match=r"layer 1 of Wan.* has the processor OwnProcessor of .*test_session",
    ):
        sparsify(pipe)
    assert traces(pipe) == before
    assert_clean(pipe)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("drafts", {}, "unknown preset 'drafts': did you mean draft"),
        ("draft", {"dencity": 0.5}, "no parameter 'dencity': did you mean density"),
        ("draft", {"density": 1.5}, "density must be in"),
        ("draft", {"engine": "warp"}, "unknown engine 'warp'"),
    ],
)
def test_bad_input_leaves_the_pipeline_untouched(wan, preset, changes, message):
    pipe = wan.build["one_expert"]()
    before = traces(pipe)
    with pytest.raises(vidsparse.BadInputError, match=message):
        vidsparse.sparsify(pipe, preset, **changes)
    assert traces(pipe) == before
    assert_clean(pipe)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"7": 0.3}, "names layer '7', and there are 2 layers"),
        ({"0": [0.3, 0.2, 0.1]}, "2 heads"),
        ({"other/0": 0.3}, "there is no other"),
    ],
)
def test_budgets_of_what_is_not_there_are_refused_before_anything_runs(
    wan, tmp_path, budgets, message
):
    pipe = wan.build["one_expert"]()
    before, file = traces(pipe), tmp_path / "budgets.json"
    file.write_text(json.dumps(budgets))
    with pytest.raises(vidsparse.BadInputError, match=message):
        sparsify(pipe, budgets=file)
    assert traces(pipe) == before


def test_a_sequence_too_short_to_gain_is_dense_and_counted(wan, untouched):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe, min_tokens=49) as session:
        assert torch.equal(wan.generate(pipe), untouched("one_expert"))
    assert list(session.stats.fallbacks) == ["48 tokens are too few to gain (min_tokens is 49)"]
    assert session.stats.mean_density == 1
    assert "fell back to dense: 48 tokens" in session.summary()


def test_a_second_generation_starts_the_statistics_anew(wan):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe) as session:
        first = wan.generate(pipe)
        assert len(session.stats.step_density) == 3
        wan.generate(pipe, num_inference_steps=2)
        assert list(session.stats.step_density) == [0, 1]
        assert torch.equal(wan.generate(pipe), first)
        assert session.stats.generations == 3
        assert len(session.stats.sigmas) == 3


def test_a_generation_that_starts_at_less_noise_than_the_last_one_ended_is_a_new_one(wan):
    pipe = wan.build["video_to_video"]()
    with sparsify(pipe) as session:
        wan.generate(pipe, strength=1.0, num_inference_steps=1)
        wan.generate(pipe, strength=0.34)
        assert session.stats.generations == 2
        assert list(session.stats.step_density) == [0]
        assert session.stats.sigmas[0] < 0.9


@pytest.mark.parametrize("offload_first", [True, False])
def test_model_offload_stays_sparse_through_three_generations(wan, untouched, offload_first):
    pipe = wan.build["two_experts"]()
    with sparsify(pipe) as plain:
        expected = wan.generate(pipe)
    if offload_first:
        pipe.enable_model_cpu_offload(device="cpu")
    with sparsify(pipe, strict=True) as session:
        if not offload_first:
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert torch.equal(wan.generate(pipe), expected)
            assert session.stats.calls.keys() == plain.stats.calls.keys()
            assert session.stats.mean_density == plain.stats.mean_density < 1
        assert session.stats.generations == 3
    assert torch.equal(wan.generate(pipe), untouched("two_experts"))


def test_cross_attention_is_never_touched(wan, monkeypatch):
    pipe = wan.build["one_expert"]()
    seen, crossed = [], []
    engine_call = SparseAttention.__call__

    def spy(self, q, k, *rest):
        seen.append((q.shape[1], k.shape[1]))
        return engine_call(self, q, k, *rest)

    monkeypatch.setattr(SparseAttention, "__call__", spy)
    for block in pipe.transformer.blocks:
        block.attn2.register_forward_pre_hook(lambda *_: crossed.append(taps.current.layer))
    with sparsify(pipe):
        wan.generate(pipe)
    assert seen == [(48, 48)] * 12  # two layers, two branches, three steps
    assert crossed == [None] * 12


def test_saving_during_a_session_is_as_before(wan, tmp_path):
    transformer = wan.build["one_expert"]().transformer
    transformer.save_pretrained(tmp_path / "before")
    with sparsify(transformer):
        transformer.save_pretrained(tmp_path / "during")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "during" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "during").iterdir())) == 2


def test_a_transformer_alone_can_be_made_sparse(wan):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe):
        expected = wan.generate(pipe)
    with sparsify(pipe.transformer):
        assert torch.equal(wan.generate(pipe), expected)


def test_a_pipeline_on_a_thread_of_its_own_is_sparse_there(wan, untouched):
    pipe, other = wan.build["one_expert"](), wan.build["one_expert"]()
    with sparsify(pipe):
        expected = wan.generate(pipe)
    videos = {}

    def work():
        videos["sparse"] = wan.generate(pipe)

    with sparsify(pipe) as session:
        thread = threading.Thread(target=work)
        thread.start()
        videos["dense"] = wan.generate(other)
        thread.join()
    assert torch.equal(videos["sparse"], expected)
    assert torch.equal(videos["dense"], untouched("one_expert"))
    assert session.stats.mean_density < 1


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(48, 48).tril().bool()[None, None], "differs between queries"),
        (torch.arange(48).float()[None, None, None], "adds a bias to attention scores"),
        (torch.ones(1, 1, 1, 48).bool(), None),
        (torch.zeros(1, 1, 1, 48), None),
    ],
)
def test_a_mask_is_a_counted_fallback_unless_it_only_leaves_out_keys(wan, mask, reason):
    pipe = wan.build["one_expert"]()
    for block in pipe.transformer.blocks:
        block.attn1.register_forward_pre_hook(lambda _, args: (*args[:2], mask, *args[3:]))
    dense = wan.generate(pipe)
    with sparsify(pipe) as session:
        video = wan.generate(pipe)
    assert [reason in found for found in session.stats.fallbacks] == [True] * (reason is not None)
    assert (session.stats.mean_density == 1) == (reason is not None)
    assert torch.equal(video, dense) == (reason is not None)


def test_the_summary_names_the_preset_and_the_realised_density(wan):
    pipe = wan.build["one_expert"]()
    with sparsify(pipe) as session:
        assert session.summary() == "draft: vidsparse: nothing was generated in this session yet"
        wan.generate(pipe)
    assert session.summary().startswith("draft: mean density 0.556 over 3 steps x 2 layers, 33% of")
    assert "nothing fell back to dense" in session.summary()


@pytest.mark.parametrize("target", ["pipeline", "transformer"])
def test_a_transformer_that_was_compiled_and_put_in_its_place_is_found(wan, target):
    plain = wan.build["one_expert"]()
    with sparsify(plain) as session:
        expected = wan.generate(plain)
    pipe = wan.build["one_expert"]()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with sparsify(pipe if target == "pipeline" else pipe.transformer) as compiled:
        torch.testing.assert_close(wan.generate(pipe), expected)
        assert vidsparse.session_of(pipe) is compiled
    assert compiled.stats.mean_density == session.stats.mean_density < 1
    assert compiled.stats.generations == session.stats.generations == 1
    assert compiled.notes == session.notes
    assert vidsparse.session_of(pipe) is None


def test_a_processor_that_inherits_its_call_is_reached(wan):
    pipe = wan.build["one_expert"]()
    own = type("Own", (type(pipe.transformer.blocks[0].attn1.processor),), {"__module__": __name__})
    for block in pipe.transformer.blocks:
        block.attn1.processor = own()
    with sparsify(pipe) as session:
        wan.generate(pipe)
    assert session.stats.mean_density < 1
    assert not session.stats.fallbacks


@pytest.mark.parametrize("preset", [None, ["draft"], 3])
def test_what_is_no_preset_is_refused_in_a_sentence(wan, preset):
    with pytest.raises(vidsparse.BadInputError, match="a preset is a name, such as 'balanced'"):
        vidsparse.sparsify(wan.build["one_expert"](), preset)
