"""The probe: what it times, what it keeps, and that it leaves nothing behind."""

import copy
import inspect
import runpy
from pathlib import Path
from time import perf_counter

import pytest
import torch

import vidsparse
from vidsparse.pipelines import taps
from vidsparse.pipelines.running.stage_timing import LATENTS, Probe


@pytest.fixture(params=["one_expert", "two_experts"])
def pipe(request, wan):
    return wan.build[request.param]()


def traces(pipe):
    """Everything a probe could leave on a pipeline."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [
        (len(m._forward_pre_hooks), len(m._forward_hooks)) for part in parts for m in part.modules()
    ]
    own = "decode" in vars(pipe.vae), "step" in vars(pipe.scheduler)
    return hooks, own, taps.tapped_modules(), taps.current.layer


def test_a_dense_run_is_the_same_and_its_stages_are_timed(pipe, wan):
    plain, before = wan.generate(pipe), traces(pipe)
    with Probe(pipe) as probe:
        started = perf_counter()
        probed = wan.generate(pipe, output_type="np")
        total = perf_counter() - started
    assert traces(pipe) == before
    assert set(probe.seconds) == {"text_encoder", "attention", "vae"}
    assert all(seconds > 0 for seconds in probe.seconds.values())
    assert sum(probe.seconds.values()) < total
    assert probed.shape == (1, 9, 64, 64, 3)
    with Probe(pipe) as probe:
        torch.testing.assert_close(wan.generate(pipe), plain, rtol=0, atol=0)
    assert len(probe.latents) == 3
    torch.testing.assert_close(probe.latents[-1], plain.flatten(), rtol=0, atol=0)


def test_every_self_attention_call_is_timed_once(pipe, wan):
    with Probe(pipe) as probe:
        wan.generate(pipe)
    assert len(probe._watches["attention"]) == 3 * 2 * 2  # steps, branches, layers
    assert probe.shape == (1, 3 * 4 * 4, 2, 12)
    assert len(probe._watches["text_encoder"]) == 2
    assert len(probe._watches["vae"]) == 0


def test_a_session_works_as_without_a_probe_and_its_attention_is_timed(pipe, wan):
    options = {"min_tokens": 0, "block": 16, "density": 0.5}
    with vidsparse.sparsify(pipe, "random", **options):
        plain = wan.generate(pipe)
    before = traces(pipe)
    with vidsparse.sparsify(pipe, "random", **options) as session, Probe(pipe) as probe:
        probed = wan.generate(pipe)
    assert traces(pipe) == before
    torch.testing.assert_close(probed, plain, rtol=0, atol=0)
    assert session.stats.engines.total() > 0
    assert probe.seconds["attention"] > session.stats.attention_seconds > 0


def test_an_error_in_the_middle_leaves_no_trace(pipe, wan):
    before = traces(pipe)

    def stop(*args):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), Probe(pipe):
        wan.generate(pipe, callback_on_step_end=stop)
    assert traces(pipe) == before


def test_a_method_put_there_before_is_put_back(wan):
    pipe = wan.build["one_expert"]()
    mine = pipe.vae.decode
    pipe.vae.decode = mine
    with Probe(pipe):
        assert vars(pipe.vae)["decode"] is not mine
    assert vars(pipe.vae)["decode"] is mine


def test_of_large_latents_an_even_sample_is_kept():
    from vidsparse.pipelines.running.stage_timing import _sample

    latents = torch.arange(3.0 * LATENTS).view(3, -1)
    sample = _sample(latents)
    assert sample.tolist() == list(range(0, 3 * LATENTS, 3))
    latents.zero_()
    assert sample[-1] > 0


def test_the_time_of_all_text_encoders_counts():
    builders = runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))["BUILDERS"]
    pipe = builders["flux"]()
    before = traces(pipe)
    with Probe(pipe) as probe:
        pipe.encode_prompt(prompt="a red circle", prompt_2=None, max_sequence_length=16)
    assert len(probe._watches["text_encoder"]) == 2  # CLIP and T5
    assert traces(pipe) == before


def test_a_copy_of_the_scheduler_steps_itself(wan):
    """LTX-2 steps a copy for its audio; SkyReels-V2, frame by frame, copies alone."""
    pipe = wan.build["one_expert"]()
    scheduler, latents = pipe.scheduler, torch.zeros(1, 4)
    scheduler.set_timesteps(2)
    with Probe(pipe) as probe:
        other = copy.deepcopy(scheduler)
        for timestep in scheduler.timesteps:
            for each in (scheduler, other):
                each.step(torch.ones(1, 4), timestep, latents)
        assert inspect.signature(scheduler.step) == inspect.signature(other.step)
    assert (scheduler.step_index, other.step_index) == (2, 2)
    assert len(probe.latents) == 2
    other.set_timesteps(2)
    other.step(torch.ones(1, 4), other.timesteps[0], latents)
    assert scheduler.step_index == 2
