"""Calls that hold other branches than their pipeline usually stacks, and others' pipelines."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin

import vidsparse
from vidsparse.pipelines.stacked import branches_of, copies_in

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
SPARSE: dict[str, Any] = {
    "min_tokens": 0, "block": 16, "density": 0.4, "warmup": 0.0, "ramp_until": 0.0
}  # fmt: skip


class Pipeline(ConfigMixin):
    """Makes one forward call for each batch of (latents, text) that it is given."""

    def __init__(self, transformer, is_guided):
        self.scheduler = None
        self.components = {"transformer": transformer}
        self.transformer = transformer
        self.do_classifier_free_guidance = is_guided

    @torch.no_grad()
    def __call__(self, *calls):
        return [call(self.transformer, *each) for each in calls]


def call(transformer, latents, text, timestep=750):
    timestep = torch.full((len(latents),), timestep)
    return transformer(latents, text, timestep, return_dict=False)[0]


@pytest.fixture
def model():
    """CogVideoX, whose pipelines stack uncond and cond."""
    return TINY["cogvideox"]().module


@pytest.fixture
def samples():
    draw = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=draw)

    return [(randn(1, 3, 4, 10, 14), randn(1, 7, 8), randn(1, 7, 8)) for _ in range(2)]


def batch(samples, *branches):
    """Latents and texts of these branches, 0 uncond and 1 cond, of all samples."""
    latents = torch.cat([latents for latents, *_ in samples] * len(branches))
    return latents, torch.cat([texts[branch] for branch in branches for _, *texts in samples])


def assert_each_as_alone(run, samples):
    """A run returns the predictions of its calls; of samples together they are those of each."""
    together = run(samples)
    for at, each in enumerate(samples):
        for made, alone in zip(together, run([each]), strict=True):
            torch.testing.assert_close(made[at::2], alone, rtol=1e-4, atol=1e-5)


def branches(session):
    return [key.branch.partition("/")[2] for key in session.stats.calls if key.layer == 0]


def test_a_pipeline_without_guidance_that_shares_the_transformer_has_two_prompts(model, samples):
    """As LTX's second stage, and ``from_pipe``."""
    guided, plain = Pipeline(model, True), Pipeline(model, False)

    def run(some):
        with vidsparse.sparsify(guided, "balanced", **SPARSE) as session:
            guided(batch(some, 0, 1))
            assert branches(session) == ["cond", "uncond"]
            made = plain(batch(some, 1))
        assert branches(session) == ["call0"]
        assert session.stats.generations == 2
        return made

    assert_each_as_alone(run, samples)


def test_a_call_beside_the_stacked_one_is_no_stack(model, samples):
    """The third, cond-only call of skip-layer guidance, with two images."""
    pipe = Pipeline(model, True)

    def run(some):
        with vidsparse.sparsify(pipe, "balanced", **SPARSE) as session:
            made = pipe(batch(some, 0, 1), batch(some, 1))
        assert branches(session) == ["cond", "uncond", "call1"]
        return made

    assert_each_as_alone(run, samples)


def test_guidance_may_be_cut_off_in_the_middle_of_a_run(model, samples):
    pipe = Pipeline(model, True)

    def run(some):
        with vidsparse.sparsify(pipe, "balanced", **SPARSE) as session:
            made = pipe((*batch(some, 0, 1), 750), (*batch(some, 1), 500), (*batch(some, 1), 250))
        assert branches(session) == ["cond", "uncond", "call0", "call0"]
        return made

    assert_each_as_alone(run, samples)


def test_three_branches_may_be_stacked(model, samples):
    pipe = Pipeline(model, True)

    def run(some):
        with vidsparse.sparsify(pipe, "balanced", **SPARSE) as session:
            made = pipe(batch(some, 0, 1, 1))
        assert branches(session) == ["branch0", "branch1", "branch2"]
        return made

    assert_each_as_alone(run, samples)


@pytest.mark.parametrize("name", [None, "cond_uncond"])
def test_two_prompts_on_a_bare_transformer_are_two_prompts(model, samples, name):
    def run(some):
        with vidsparse.sparsify(model, "balanced", **SPARSE) as session, torch.no_grad():
            if name is None:
                made = call(model, *batch(some, 1))
            else:
                with model.cache_context(name):
                    made = call(model, *batch(some, 1))
        assert branches(session) == [name or "call0"]
        return [made]

    assert_each_as_alone(run, samples)


def test_a_pipeline_that_keeps_its_guidance_to_itself_is_read(model, samples):
    """PixArt and AuraFlow have it in a local variable."""

    class Reticent(Pipeline):
        def __call__(self, *calls, do_classifier_free_guidance=False):
            return super().__call__(*calls)

    pipe = Reticent(model, None)
    for is_guided in (True, False):
        with vidsparse.sparsify(pipe, "balanced", **SPARSE) as session:
            pipe(batch(samples, 0, 1), do_classifier_free_guidance=is_guided)
        assert branches(session) == (["cond", "uncond"] if is_guided else ["call0"])


def test_padding_of_those_beside_it_changes_no_sample():
    """Prompts of other lengths, beside which the empty prompt is the same for all."""
    tiny = TINY["hunyuan_video"]()
    inputs = {name: x for name, x in tiny.inputs.items() if name != tiny.latents}
    name = "encoder_attention_mask"
    mask = inputs.pop(name)[:1]
    latents = tiny.inputs[tiny.latents][:1]
    words = mask.shape[1]

    class Two:
        components = {"transformer": tiny.module}  # noqa: RUF012
        transformer = tiny.module

        @torch.no_grad()
        def __call__(self, numbers):
            x = torch.cat([latents + 0.1 * n for n in numbers])
            given = {
                key: torch.cat([value[:1]] * len(numbers)) if len(value) == 1 else value
                for key, value in inputs.items()
            }
            made = []
            for lengths in ([words - 2 - n % 2 for n in numbers], [2] * len(numbers)):
                rows = torch.arange(words) < torch.tensor(lengths)[:, None]
                masks = {name: rows.to(mask.dtype)}
                made += self.transformer(x, **given, **masks, return_dict=False)
            return made

    pipe = Two()

    def run(numbers):
        with vidsparse.sparsify(pipe, "semantic", q_clusters=5, kv_clusters=9, min_tokens=0,
                                warmup=0.0, ramp_until=0.0):  # fmt: skip
            return pipe(numbers)

    together = run([0, 1, 2])
    for n in range(3):
        for made, alone in zip(together, run([n]), strict=True):
            torch.testing.assert_close(made[n : n + 1], alone, rtol=1e-4, atol=1e-5)


def test_what_is_stacked_is_seen_in_the_latents():
    one, two, three = torch.randn(3, 1, 5)
    assert copies_in(torch.cat([one, two, one, two])) == 2
    assert copies_in([one, two, one, two, one, two]) == 3
    assert copies_in(torch.cat([one, two, three])) == copies_in(torch.cat([one, two])) == 1
    assert copies_in(one) == 1


def test_parts_are_named_by_the_order_of_the_table():
    assert branches_of(4, 2, "cond first", "x") == [
        (slice(0, 2), "cond"), (slice(2, 4), "uncond")
    ]  # fmt: skip
    assert branches_of(4, 2, "uncond first", "x") == [
        (slice(2, 4), "cond"), (slice(0, 2), "uncond")
    ]  # fmt: skip
    assert branches_of(4, 1, "uncond first", "x") == [(slice(None), "x")]


@pytest.mark.parametrize("says", [True, None])
def test_latents_are_compared_once_a_run_or_once_a_call(model, samples, says, monkeypatch):
    """Which waits for the device: never once a layer."""
    seen = []
    monkeypatch.setattr(
        "vidsparse.pipelines.forward.copies_in", lambda x: seen.append(len(x)) or copies_in(x)
    )
    pipe = Pipeline(model, says)
    with vidsparse.sparsify(pipe, "balanced", **SPARSE):
        pipe((*batch(samples, 0, 1), 750), (*batch(samples, 0, 1), 500), (*batch(samples, 1), 250))
    assert seen == ([4, 2] if says else [4, 4, 2])
