"""The clock: runs, steps and branches, by whoever knows them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks.hooks import CacheContext

from vidsparse.pipelines.caller import Caller
from vidsparse.pipelines.clock import Clock, read_noise
from vidsparse.pipelines.runs import BY_NOISE, Reading
from vidsparse.progress import Progress


class Scheduler:
    """Lists flow-matching noise levels and counts its steps, as those of diffusers do."""

    def __init__(self, *levels):
        self.config, self.num_inference_steps = {"use_flow_sigmas": True}, len(levels)
        self.set(*levels)

    def set(self, *levels, begin=None):
        self.sigmas = torch.tensor([*levels, 0.0])
        self.timesteps = 1000 * torch.tensor(levels)
        self.step_index, self.begin_index = None, begin

    def step(self):
        start = self.begin_index or 0
        self.step_index = (start if self.step_index is None else self.step_index) + 1


class Played:
    """Plays forward calls to a clock and notes what it made of each."""

    def __init__(self, scheduler=None):
        self.generations = self.windows = 0
        self.notes = []
        self.clock = Clock(self.generation, self.window, self.notes.append)
        self.scheduler: Any = scheduler
        self.pipeline = SimpleNamespace()
        self.frame: Any = object()  # of a call of the pipeline
        self.read = 0

    def generation(self):
        self.generations += 1

    def window(self):
        self.windows += 1

    def call(self, noise=None, **context):
        """In a pipeline, if there is a frame."""
        caller = self.frame and Caller(self.pipeline, self.frame, self.frame)
        return self.begin(noise, context, caller)

    def alone(self, noise=None, **context):
        """In a loop of one's own."""
        return self.begin(noise, context, None)

    def begin(self, noise, context, caller):
        def read():
            self.read += 1
            return noise

        self.clock.context = CacheContext(**context) if context else None
        self.clock.begin(
            Reading(noise=read, context=self.clock.context, caller=caller, scheduler=self.scheduler)
        )
        clock = self.clock
        assert clock.known or self.notes
        return clock.step, pytest.approx(clock.sigma), clock.branch


def test_the_pipelines_own_word_comes_first():
    played = Played(Scheduler(1.0, 0.5))
    told = {"name": "cond", "step_index": 1, "sigma": 0.6}
    assert played.call(0.999, **told) == (1, 0.6, "cond")


def test_steps_are_the_schedulers_however_bfloat16_rounds_their_noise():
    levels = [1.0, 0.9995, 0.999, 0.998, 0.5]
    played = Played(Scheduler(*levels))
    for step, level in enumerate(levels):
        rounded = float(torch.tensor(level, dtype=torch.bfloat16))
        for branch in ("call0", "call1"):
            assert played.call(rounded) == (step, level, branch)
        played.scheduler.step()
    assert played.generations == 1
    assert played.read == 1  # which waits for a device: once a run


def test_both_calls_of_a_second_order_step_are_steps_of_their_own():
    played = Played(Scheduler(1.0, 0.7, 0.7, 0.4, 0.4))
    seen = []
    for level in (1.0, 0.7, 0.7, 0.4, 0.4):
        seen.append(played.call(level))
        played.scheduler.step()
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert [sigma for _, sigma, _ in seen] == [1.0, 0.7, 0.7, 0.4, 0.4]


def test_a_list_of_timesteps_that_was_set_anew_is_another_run():
    """As after a run that was cut short, whatever the noise of either."""
    played = Played(Scheduler(1.0, 0.9, 0.5))
    assert played.call(1.0)[:2] == (0, 1.0)
    played.frame = object()
    played.scheduler.set(1.0, 0.9, 0.5, begin=1)  # from a video, at less noise
    assert played.call(0.9)[:2] == (0, 0.9)
    assert played.clock.progress == Progress((1 / 3, 2 / 3, 1.0), 0)
    played.scheduler.step()
    assert played.call(0.5)[:2] == (1, 0.5)
    assert played.clock.progress == Progress((1 / 3, 2 / 3, 1.0), 1)
    assert (played.generations, played.windows) == (2, 0)


def test_windows_of_one_call_are_runs_of_one_generation():
    played = Played(Scheduler(1.0, 0.5))
    steps, done = [], []
    for _ in range(3):
        played.scheduler.set(1.0, 0.5)
        for level in (1.0, 0.5):
            steps.append(played.call(level)[0])
            assert played.clock.progress is not None
            done.append(played.clock.progress.before)
            played.scheduler.step()
    assert steps == [0, 1, 2, 3, 4, 5]
    assert done == [0.0, 0.5] * 3
    assert (played.generations, played.windows) == (1, 2)
    played.clock.finish()
    played.scheduler.set(1.0, 0.5)
    assert played.call(1.0)[0] == 0
    assert (played.generations, played.windows) == (2, 2)


def test_another_call_of_the_pipeline_is_another_generation_even_with_the_same_list():
    played = Played(Scheduler(1.0, 0.5))
    played.call(1.0)
    played.frame = object()
    assert played.call(1.0) == (0, 1.0, "call0")
    assert played.generations == 2


def test_a_cache_that_skips_calls_does_not_shift_steps():
    played = Played(Scheduler(1.0, 0.9, 0.8, 0.7))
    played.call(1.0)
    played.scheduler.step()
    played.scheduler.step()  # nobody was asked at .9
    assert played.call(0.8)[:2] == (2, 0.8)


def test_a_run_that_leaves_out_the_first_steps_of_its_list_begins_on_the_way():
    played = Played(Scheduler(1.0, 0.9, 0.75, 0.5))
    played.scheduler.set(1.0, 0.9, 0.75, 0.5, begin=1)
    found = []
    for level in (0.9, 0.75, 0.5):
        played.call(level)
        found.append(played.clock.progress)
        played.scheduler.step()
    assert found == [Progress((0.25, 0.5, 0.75, 1.0), at) for at in range(3)]
    assert found == list(found[0].steps())


def test_a_scheduler_that_keeps_no_index_is_followed_by_its_exact_timesteps():
    kept = SimpleNamespace(timesteps=torch.tensor([900, 500, 100]), num_inference_steps=3)
    kept.config = {"num_train_timesteps": 1000}
    played = Played(kept)
    seen = [played.call(t, name="cond_uncond") for t in (0.9, 0.5, 0.5, 0.1)]
    assert [(step, branch) for step, _, branch in seen] == [
        (0, "cond_uncond"), (1, "cond_uncond"), (1, "cond_uncond.2"), (2, "cond_uncond")
    ]  # fmt: skip


def test_pipelines_that_keep_schedulers_of_their_own_are_followed_by_their_moments():
    """SkyReels-V2 copies the scheduler for each frame: its own never moves."""
    played = Played(Scheduler(1.0, 0.5))
    seen = []
    for noise in (1.0, 1.0, 0.8):
        played.pipeline._current_timestep = torch.tensor([noise, 0.0])
        seen += [played.call(noise, name=name) for name in ("cond", "uncond")]
    assert [(step, sigma) for step, sigma, _ in seen[::2]] == [(0, 1.0), (1, 1.0), (2, 0.8)]
    assert [branch for *_, branch in seen] == ["cond", "uncond"] * 3


def test_a_branch_that_comes_again_within_a_step_is_another():
    played = Played(Scheduler(1.0, 0.5))
    assert [played.call(1.0, name="cond")[2] for _ in range(3)] == ["cond", "cond.2", "cond.3"]


def test_a_loop_of_ones_own_is_followed_by_the_schedulers_steps_where_they_agree():
    played = Played(Scheduler(1.0, 0.9, 0.5))
    for step, level in enumerate((1.0, 0.9, 0.5)):
        assert played.alone(level) == (step, level, "call0")
        assert played.alone(level) == (step, level, "call1")
        played.scheduler.step()
    played.scheduler.set(1.0, 0.9, 0.5)
    played.alone(1.0)
    assert played.generations == 2
    played.notes.append("expected")
    played.alone(0.3)  # which is not where the scheduler stands
    assert "nobody says which step" in played.notes[-1]


def test_steps_that_cache_context_names_are_believed():
    played = Played()
    calls = [(0, "cond"), (0, "uncond"), (1, "cond"), (0, "cond"), (0, "cond")]
    seen = [played.alone(0.7, name=name, step_index=step) for step, name in calls]
    assert [(step, branch) for step, _, branch in seen] == calls
    assert played.generations == 3
    assert played.clock.known
    assert played.clock.progress is not None
    assert played.clock.progress.bounds == pytest.approx((0.3, 0.3))
    assert set(played.notes) == {BY_NOISE}


def test_steps_that_are_named_have_the_progress_of_the_list_where_their_noise_stands_there():
    played = Played(Scheduler(1.0, 0.9, 0.5))
    for step, level in enumerate((1.0, 0.9, 0.5)):
        played.alone(level, name="cond", step_index=step)
        assert played.clock.progress == replace(Progress.first(3), at=step)
    assert not played.notes
    played.alone(0.3, name="cond", step_index=0)
    assert played.clock.progress == Progress.alone(0.7)
    assert played.notes == [BY_NOISE]


def test_a_pipeline_whose_scheduler_lists_no_steps_goes_by_its_noise_and_says_so():
    played = Played(Scheduler(*(1 - step / 1000 for step in range(1000))))
    played.scheduler.num_inference_steps = None  # as schedulers are before they are set
    assert played.call(0.4)[1] == 0.4
    assert played.clock.progress is not None
    assert played.clock.progress.bounds == pytest.approx((0.6, 0.6))
    assert played.notes == [BY_NOISE]


@pytest.fixture
def unknown():
    played = Played()
    played.notes.append("expected")
    return played


def test_a_bare_transformer_is_followed_by_its_noise_and_says_so(unknown):
    seen = [unknown.alone(t) for t in (0.9, 0.9, 0.5, 0.5, 0.9)]
    assert [(step, branch) for step, _, branch in seen] == [
        (0, "call0"), (0, "call1"), (1, "call0"), (1, "call1"), (0, "call0")
    ]  # fmt: skip
    assert unknown.generations == 2
    assert "nobody says which step" in unknown.notes[-1]
    assert "how far the run has come was read from the noise" in unknown.notes[-1]
    assert unknown.clock.progress is not None
    assert unknown.clock.progress.bounds == pytest.approx((0.1, 0.1))


def test_a_name_that_comes_again_at_the_same_noise_is_another_run(unknown):
    """A generation of one step, made twice in a loop of one's own."""
    for _ in range(2):
        seen = [unknown.alone(0.9, name=name) for name in ("cond", "uncond")]
        assert [(step, branch) for step, _, branch in seen] == [(0, "cond"), (0, "uncond")]
    assert unknown.generations == 2


def test_nothing_known_is_said_and_not_guessed(unknown):
    unknown.alone()
    assert unknown.clock.sigma is None
    assert not unknown.clock.known


def test_after_the_end_nothing_is_held(unknown):
    unknown.alone(0.9)
    unknown.clock.finish()
    assert (unknown.clock.step, unknown.clock.sigma) == (-1, None)
    assert unknown.alone(0.3)[:2] == (0, 0.3)
    assert unknown.generations == 2


def test_noise_is_read_from_timesteps():
    assert read_noise(torch.tensor([750.0]), 0.0, 1000.0) == 0.75
    assert read_noise(torch.tensor([0.25]), 1.0, 0.0) == 0.75
    assert read_noise(torch.tensor([[0.0, 0.0, 500.0]]), 0.0, 1000.0) == 0.5  # the noisiest token
    assert read_noise(None, 0.0, 1000.0) is None
