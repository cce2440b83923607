"""The clock: steps, branches and where a generation begins."""

import pytest
import torch
from diffusers.hooks.hooks import CacheContext

from vidsparse.pipelines.clock import Clock


class Run:
    """Plays forward calls to a clock and notes what it made of each."""

    def __init__(self):
        self.starts = 0
        self.clock = Clock(1000, self.start)

    def start(self):
        self.starts += 1

    def call(self, timestep=None, **context):
        self.clock.context = CacheContext(**context) if context else None
        self.clock.begin(None if timestep is None else torch.tensor(timestep))
        return self.clock.step, self.clock.sigma, self.clock.branch


@pytest.fixture
def run():
    return Run()


def test_the_pipelines_own_word_comes_before_the_timestep(run):
    told = {"name": "cond", "step_index": 4, "sigma": 0.6}
    assert run.call(timestep=[999.0], **told) == (4, 0.6, "cond")


def test_without_a_word_noise_is_read_from_the_timestep(run):
    assert run.call(timestep=[750.0]) == (0, 0.75, "call0")


def test_the_noise_of_the_next_step_is_looked_up_where_the_scheduler_tells_its_levels(run):
    levels = [1.0, 0.9, 0.9, 0.75, 0.5]  # a level counts once, whatever calls there are at it
    run.clock = Clock(1000, run.start, lambda: levels)
    found = []
    for timestep in (900.0, 900.0, 751.0, 500.0):  # from image to video: it starts late
        run.call([timestep])
        found.append(run.clock.next_sigma)
    assert found == [0.75, 0.75, 0.5, None]
    run.clock = Clock(1000, run.start)
    run.call([900.0])
    assert run.clock.next_sigma is None


def test_timesteps_of_single_tokens_count_at_their_noisiest(run):
    assert run.call(timestep=[[0.0, 0.0, 500.0]])[1] == 0.5


def test_a_context_without_noise_level_names_the_branch_and_the_timestep_the_rest(run):
    seen = [run.call([t], name=name) for t in (900.0, 600.0) for name in ("cond", "uncond")]
    expected = [(0, 0.9, "cond"), (0, 0.9, "uncond"), (1, 0.6, "cond"), (1, 0.6, "uncond")]
    assert seen == expected
    assert run.starts == 1


def test_calls_at_the_same_noise_are_branches_of_one_step(run):
    seen = [run.call([t]) for t in (900.0, 900.0, 500.0, 500.0)]
    assert [(step, branch) for step, _, branch in seen] == [
        (0, "call0"),
        (0, "call1"),
        (1, "call0"),
        (1, "call1"),
    ]


def test_a_generation_begins_when_noise_rises(run):
    for t in (900.0, 500.0, 900.0):
        last = run.call([t])
    assert run.starts == 2
    assert last == (0, 0.9, "call0")


def test_a_generation_begins_after_the_last_has_finished_even_at_less_noise(run):
    run.call([900.0])
    run.clock.finish()
    assert (run.clock.step, run.clock.sigma) == (-1, None)
    assert run.call([300.0]) == (0, 0.3, "call0")
    assert run.starts == 2


def test_a_generation_that_was_cut_short_in_its_first_step_begins_anew(run):
    first = {"name": "cond", "step_index": 0, "sigma": 1.0}
    run.call(**first)
    run.call(**first | {"name": "uncond"})
    assert run.starts == 1
    run.call(**first)
    assert run.starts == 2


def test_nothing_known_is_said_and_not_guessed(run):
    assert run.call()[1] is None
