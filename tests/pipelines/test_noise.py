"""Noise levels as schedulers tell them during a run."""

from itertools import pairwise

import diffusers
import pytest

from vidsparse.pipelines.levels import level_after, noise_levels

SCHEDULERS = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),  # which comes by each level twice
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    ("CogVideoXDDIMScheduler", {}),
    ("CogVideoXDPMScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
]


@pytest.mark.parametrize(("name", "config"), SCHEDULERS)
def test_the_level_after_each_timestep_is_that_of_the_next(name, config):
    scheduler = getattr(diffusers, name)(**config)
    noise_levels(scheduler)  # before any steps are set it may tell what it likes
    scheduler.set_timesteps(8)
    levels = noise_levels(scheduler)
    read = sorted({float(t) / 1000 for t in scheduler.timesteps}, reverse=True)
    assert len(read) >= 8
    for sigma, after in pairwise(read):
        assert level_after(sigma, levels) == pytest.approx(after, abs=0.002)


def test_no_scheduler_and_none_that_was_set_tell_no_level():
    assert noise_levels(None) == []
    assert level_after(0.5, []) is None
