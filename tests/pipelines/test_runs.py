"""Which run and which step, on real pipelines whose noise levels do not tell."""

import runpy
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch

import vidsparse
from vidsparse.comparison.measure import measure
from vidsparse.pipelines.running.generate import Request
from vidsparse.pipelines.runs import BY_NOISE
from vidsparse.presets import find_preset
from vidsparse.progress import Progress

BUILD = runpy.run_path(str(Path(__file__).with_name("tiny_pipelines.py")))["BUILDERS"]
diffusers: Any = _diffusers  # what it exports, its types do not say
SPARSE: dict[str, Any] = {"min_tokens": 0, "block": 16, "density": 0.3}
AT_ONCE: dict[str, Any] = SPARSE | {
    "warmup": 0.0,
    "ramp_until": 0.0,
}  # sparse from the first step on


class Made:
    """Counts the forward calls of a transformer, and the layers that attend in each."""

    def __init__(self, *transformers):
        self.calls = 0
        for transformer in transformers:
            transformer.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1


def steps(session):
    return sorted({key.step for key in session.stats.calls})


def progress_of(session) -> dict[int, Progress]:
    """By step, once it has run sparse."""
    told: dict[int, Progress] = {}
    session.observe(lambda call, *_: told.update({call.step: call.progress}))
    return told


@pytest.fixture
def flux():
    pipe = BUILD["flux"]().to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, seed=0, **changes):
    request = {"prompt": "a red circle", "height": 24, "width": 24, "max_sequence_length": 16}
    made = pipe(
        **(request | {"output_type": "latent", "num_inference_steps": 28} | changes),
        generator=torch.Generator().manual_seed(seed),
    )
    return made[0]


@pytest.mark.parametrize("shift", [1.0, 12.0, 100.0])
def test_timesteps_that_collide_in_bfloat16_are_still_steps(flux, shift):
    flux.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    made = Made(flux.transformer)
    with vidsparse.sparsify(flux, "draft", strict=True, **SPARSE) as session:
        images(flux)
    stats = session.stats
    assert steps(session) == list(range(28))
    assert len(stats.calls) == 2 * made.calls == 56
    levels = flux.scheduler.sigmas[:28].tolist()
    assert list(stats.sigmas.values()) == pytest.approx(levels)
    ways, target = session.preset.schedule.ways(Progress.first(28)), stats.step_density[27]
    expected = [1 - way * (1 - target) for way in ways]
    assert stats.mean_density == pytest.approx(sum(expected) / 28, abs=0.02)
    assert not stats.notes


def test_every_call_of_a_second_order_scheduler_is_recorded(wan):
    pipe = wan.build["image_to_video"]()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    made = Made(pipe.transformer)
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        wan.generate(pipe, num_inference_steps=4)
    assert made.calls == 14  # two branches of 2 x 4 - 1 evaluations
    assert len(session.stats.calls) == 2 * made.calls
    assert steps(session) == list(range(7))
    assert {key.branch for key in session.stats.calls} == {
        "transformer/cond", "transformer/uncond"
    }  # fmt: skip


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 12.0}
SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 12.0},
    "FlowMatchHeunDiscreteScheduler": {"shift": 12.0},
    "UniPCMultistepScheduler": FLOW,
    "DPMSolverMultistepScheduler": FLOW,
}


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_progress_is_the_share_of_the_list_whatever_the_scheduler_and_its_shift(wan, name, steps):
    pipe = wan.build["one_expert"]()
    pipe.scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    with vidsparse.sparsify(pipe, "draft", strict=True, **AT_ONCE) as session:
        told = progress_of(session)
        wan.generate(pipe, num_inference_steps=steps, num_frames=5, height=32, width=32)
    number = 2 * steps - 1 if "Heun" in name else steps
    assert list(told.values()) == list(Progress.first(number).steps())


@pytest.mark.parametrize(("strength", "dense"), [(1.0, 4), (0.75, 2), (0.5, 0), (0.25, 0)])
def test_a_run_from_a_video_begins_on_the_way(wan, strength, dense):
    pipe, steps = wan.build["video_to_video"](), 8
    settings: dict[str, Any] = SPARSE | {"warmup": 0.5, "ramp_until": 0.5}
    with vidsparse.sparsify(pipe, "draft", strict=True, **settings) as session:
        told = progress_of(session)
        wan.generate(pipe, num_inference_steps=steps, strength=strength)
    ran = [density < 1 for density in session.stats.step_density.values()]
    assert ran == [False] * dense + [True] * (round(steps * strength) - dense)
    assert told[dense].bounds == Progress.first(steps).bounds[round(steps * (1 - strength)) :]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_second_stage_of_levels_of_its_own_begins_on_the_way(wan, shift):
    """As LTX-2 makes its second stage: from a list of its own, that starts at .909."""
    pipe, levels = wan.build["one_expert"](), [0.909375, 0.725, 0.421875]
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    own = pipe.scheduler.set_timesteps
    pipe.scheduler.set_timesteps = lambda *_, device: own(sigmas=levels, device=device)
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        told = progress_of(session)
        wan.generate(pipe, num_inference_steps=3)
    assert next(iter(session.stats.step_density)) in told  # the warm-up is behind it
    assert told[0].bounds == pytest.approx(Progress.first(3, 1 - levels[0]).bounds, abs=1e-5)
    assert [told[step].at for step in told] == [0, 1, 2]


STATEFUL: dict[str, dict[str, Any]] = {
    "adaspa": {"block": 16, "replan": 3},
    "semantic": {"q_clusters": 3, "kv_clusters": 6},
    "svg": {"block": 16},
    "re-ttention": {"block": 16, "replan": 3},
    "lite": {"block": 16},
}


@pytest.mark.parametrize("preset", STATEFUL)
@pytest.mark.parametrize("kind", ["one_expert", "video_to_video"])
def test_a_run_cut_short_in_its_first_step_leaves_nothing_to_the_next(wan, kind, preset):
    """Not even when the next one starts at less noise, as if it went on."""
    changes: dict[str, Any] = STATEFUL[preset] | {
        "min_tokens": 0,
        "warmup": 0.0,
        "ramp_until": 0.0,
    }
    request = {"strength": 0.75} if kind == "video_to_video" else {}
    cut = {"strength": 1.0} if kind == "video_to_video" else {}
    fresh, pipe = wan.build[kind](), wan.build[kind]()
    with vidsparse.sparsify(fresh, preset, **changes) as session:
        expected = wan.generate(fresh, seed=1, **request)
    stop = type("Stop", (Exception,), {})
    step = type(pipe.scheduler).step

    def fail(*args, **kwargs):
        raise stop

    with vidsparse.sparsify(pipe, preset, **changes) as again:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipe.scheduler), "step", fail)
            with pytest.raises(stop):
                wan.generate(pipe, seed=0, **cut)
        assert type(pipe.scheduler).step is step
        assert torch.equal(wan.generate(pipe, seed=1, **request), expected)
        assert again.stats.generations == 2
        assert again.stats.calls.keys() == session.stats.calls.keys()


@pytest.fixture
def skyreels(wan):
    """Which makes a long video window by window, each through the whole list of steps."""
    part = wan.build["one_expert"]().components
    torch.manual_seed(0)
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=part["tokenizer"],
        text_encoder=part["text_encoder"],
        transformer=transformer,
        vae=part["vae"],
        scheduler=diffusers.UniPCMultistepScheduler(
            flow_shift=8.0, prediction_type="flow_prediction", use_flow_sigmas=True
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def long_video(pipe, **changes):
    draw = torch.Generator().manual_seed(0)
    text = {name: torch.randn(1, 16, 32, generator=draw) for name in ("prompt", "negative_prompt")}
    return pipe(
        None,
        **{f"{name}_embeds": embeds for name, embeds in text.items()},
        height=64, width=64, num_frames=25, base_num_frames=13, overlap_history=5,
        num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0),
        **changes,
    )  # fmt: skip


def test_windows_of_one_generation_are_all_in_its_statistics(skyreels):
    made = Made(skyreels.transformer)
    with vidsparse.sparsify(skyreels, "draft", **AT_ONCE) as session:
        told = progress_of(session)
        long_video(skyreels)
        assert session.stats.generations == 1
        assert list(told.values()) == [*Progress.first(3).steps()] * 3
        assert session.stats.generations == 1
        assert len(session.stats.calls) == 2 * made.calls
        assert len(steps(session)) == made.calls // 2
        long_video(skyreels)
        assert session.stats.generations == 2
        assert len(session.stats.calls) == made.calls


def test_a_run_that_steps_copies_of_its_scheduler_is_measured(skyreels):
    request = Request(prompt="a", frames=9, height=64, width=64, steps=2, guidance=2.0)
    preset = find_preset("draft").override(AT_ONCE)
    dense = measure(skyreels, request, None, lambda *_: None)
    sparse = measure(skyreels, request, preset, lambda *_: None, reference=dense.latents)
    assert sparse.run.mean_density < dense.run.mean_density
    assert dense.latents.size == 0  # the scheduler that is watched takes no step
    assert sparse.run.latent_error == []


def test_frames_that_are_denoised_one_after_the_other_take_more_steps_than_are_listed(skyreels):
    with vidsparse.sparsify(skyreels, "draft", **AT_ONCE) as session:
        told = progress_of(session)
        long_video(skyreels, ar_step=1, causal_block_size=1)
    number = len(told[0].bounds) - 1
    assert number > 3
    assert list(told.values())[:number] == list(Progress.first(number).steps())
    assert told[number].at == 0  # of the next window


def test_a_scheduler_without_an_index_is_followed(wan):
    pipe = BUILD["cogvideox"]()
    pipe.set_progress_bar_config(disable=True)
    for scheduler in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMScheduler"):
        pipe.scheduler = getattr(diffusers, scheduler)()
        made = Made(pipe.transformer)
        with vidsparse.sparsify(pipe, "draft", strict=True, **AT_ONCE) as session:
            told = progress_of(session)
            pipe(
                prompt="a", height=64, width=64, num_frames=9, max_sequence_length=16,
                num_inference_steps=5, output_type="latent", guidance_scale=6.0,
            )  # fmt: skip
        assert steps(session) == list(range(5))
        assert list(told.values()) == list(Progress.first(5).steps())
        assert len(session.stats.calls) == 2 * 2 * made.calls  # layers, branches in one batch
        assert not session.stats.notes


@torch.no_grad()
def own_loop(pipe, latents, levels=(1.0, 0.7, 0.4), names=None, **changes):
    text = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    for step, level in enumerate(levels):
        timestep = torch.tensor([1000 * level])
        context = {"name": "cond"} | ({"step_index": step} if names else {})
        with pipe.transformer.cache_context(**context):
            noise = pipe.transformer(latents, timestep, text, return_dict=False)[0]
        latents = latents - 0.3 * noise
    return latents


@pytest.fixture
def noise():
    return torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("preset", STATEFUL)
def test_a_bare_transformer_shares_nothing_between_calls_and_says_so(wan, noise, preset):
    changes: dict[str, Any] = STATEFUL[preset] | {
        "min_tokens": 0,
        "warmup": 0.0,
        "ramp_until": 0.0,
    }
    pipe = wan.build["one_expert"]()
    with vidsparse.sparsify(pipe.transformer, preset, **changes) as session:
        whole = own_loop(pipe, noise, (0.4,))
        own_loop(pipe, noise + 1, (1.0, 0.7))
        assert torch.equal(own_loop(pipe, noise, (0.4,)), whole)  # as if it were the first
        assert session.stats.host_memory_bytes == 0
        of_geometry = {"svg": 72, "re-ttention": 84}
        assert session.stats.memory_bytes == of_geometry.get(preset, 0)
    assert any("nobody says which step" in note for note in session.notes)
    assert "nobody says which step" in session.summary()


def test_a_bare_transformer_whose_steps_are_named_remembers(wan, noise):
    pipe = wan.build["one_expert"]()
    with vidsparse.sparsify(pipe.transformer, "adaspa", replan=3, **AT_ONCE) as session:
        own_loop(pipe, noise, names=True)
        assert session.stats.host_memory_bytes > 0
        assert list(session.stats.notes) == [BY_NOISE]
        own_loop(pipe, noise, (1.0,), names=True)
        own_loop(pipe, noise, (1.0,), names=True)  # of one step, made again
        assert session.stats.generations == 3
        assert len(session.stats.calls) == 2


def test_a_loop_of_ones_own_over_the_pipelines_scheduler_is_followed(wan, noise):
    pipe = wan.build["one_expert"]()
    scheduler, text = pipe.scheduler, torch.zeros(1, 16, 32)
    with torch.no_grad(), vidsparse.sparsify(pipe, "adaspa", **AT_ONCE) as session:
        told = progress_of(session)
        for _ in range(2):
            scheduler.set_timesteps(4)
            latents = noise
            for t in scheduler.timesteps:
                made = pipe.transformer(latents, t[None], text, return_dict=False)[0]
                latents = scheduler.step(made, t, latents, return_dict=False)[0]
        assert session.stats.generations == 2
        assert steps(session) == [0, 1, 2, 3]
        assert list(told.values()) == list(Progress.first(4).steps())
        assert not session.stats.notes
