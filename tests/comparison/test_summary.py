"""What is said of a comparison: no more than its times and its prompts allow."""

from types import SimpleNamespace
from typing import Any

import pytest

from vidsparse.comparison.results import median_run
from vidsparse.comparison.summary import summarize_preset
from vidsparse.metrics.latency import Stages
from vidsparse.metrics.report.results import Clip, NoiseFloor

HERE = {"cpu": "a CPU", "cores": 2, "threads": 2, "load": 1.0}


def clip(preset="draft", prompt=0, psnr=30.0, *, dense=(10.0, 10.0), sparse=(10.0, 6.0), **more):
    """Seconds of all but attention, and of attention."""
    dense, sparse = (
        Stages(total=sum(seconds), attention=seconds[1]) for seconds in (dense, sparse)
    )
    values = {
        "preset": preset, "prompt_index": prompt, "scores": {"psnr": psnr},
        "seconds": sparse.total, "dense_seconds": dense.total,
        "all_seconds": [sparse.total], "all_dense_seconds": [dense.total],
        "time": sparse, "dense_time": dense, "mean_density": 0.5, "dense_steps_share": 0.1,
        "machine": HERE, "dense_machine": HERE, "seed": 0, "identical": False, "curves": {},
        "sigmas": [], "density": [], "engines": {}, "fallbacks": {}, "notes": [],
        "frames": {"dense": "dense.npy", "sparse": "sparse.npy"},
    }  # fmt: skip
    return Clip.model_validate(values | more)


def test_times_that_nothing_speaks_against_are_not_doubted():
    found = summarize_preset("draft", [clip()], None)
    assert found.timing == []
    assert "doubt" not in found.sentence


def test_a_slower_machine_is_said_and_the_sentence_doubts_the_time():
    found = summarize_preset("draft", [clip(dense=(20.8, 10), sparse=(63.8, 6))], None)
    assert found.timing == [
        "the same work (all but attention) took 20.8 s dense and 63.8 s sparse: the machine was "
        "not as fast in both"
    ]
    assert found.sentence.startswith("0.44x as fast as dense (timing in doubt) at PSNR 30.0 dB")


def test_of_many_clips_it_is_said_how_many_are_in_doubt():
    clips = [clip(), clip(prompt=1, sparse=(30, 6)), clip(prompt=2, sparse=(31, 6))]
    (doubt,) = summarize_preset("draft", clips, None).timing
    assert doubt.endswith("the machine was not as fast in both (one of 2 such clips of 3)")


def test_runs_on_two_machines_are_in_doubt():
    other = HERE | {"cpu": "another CPU"}
    found = summarize_preset("draft", [clip(dense_machine=other)], None)
    assert found.timing == [
        "sparse ran on a CPU with 2 threads, dense on another CPU with 2 threads"
    ]
    busier = HERE | {"load": 9.0}
    assert summarize_preset("draft", [clip(dense_machine=busier)], None).timing == []


def test_one_run_has_no_quartiles_and_repeats_are_runs():
    speed = summarize_preset("draft", [clip()], None).speedup
    assert speed.model_dump() == {"median": 1.25, "low": None, "high": None, "runs": 1}
    repeated = clip(all_seconds=[10, 20, 10], all_dense_seconds=[20, 20, 30])
    speed = summarize_preset("draft", [repeated], None).speedup
    assert speed.model_dump() == {"median": 2, "low": 1.5, "high": 2.5, "runs": 3}


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_too_few_prompts_are_not_tested_whatever_the_difference(prompts):
    clips = [clip(name, n, psnr + n / 10) for n in range(prompts)
             for name, psnr in (("draft", 32.3), ("radial", 30.0))]  # fmt: skip
    (pair,) = summarize_preset("draft", clips, None).against_next
    assert pair.verdict == f"not tested: {prompts} of 5 prompts"
    assert pair.difference == pytest.approx(2.3)


def test_enough_prompts_are_told_apart_or_not():
    clips = [clip(name, n, psnr + n / 10) for n in range(5)
             for name, psnr in (("draft", 32.3), ("radial", 30.0))]  # fmt: skip
    assert summarize_preset("draft", clips, None).against_next[0].verdict == "draft better"
    clips = [clip(name, n, 30 + sign * (-1) ** n) for n in range(6)
             for name, sign in (("draft", 1), ("radial", -1))]  # fmt: skip
    (pair,) = summarize_preset("draft", clips, None).against_next
    assert pair.verdict == "not distinguishable"


def test_one_prompt_is_not_tested_against_the_noise_floor():
    floor = NoiseFloor(psnr=41.0, identical=False, how="by another engine")
    sentence = summarize_preset("draft", [clip()], floor).sentence
    assert sentence.endswith("noise floor 41.0 dB, not tested against it: 1 of 3 prompts")


def test_the_typical_run_is_the_one_of_median_time():
    runs: list[Any] = [
        SimpleNamespace(stages=Stages(total=total)) for total in (9.0, 7.0, 30.0, 8.0)
    ]
    assert median_run(runs[:1]).stages.total == 9
    assert median_run(runs[:3]).stages.total == 9
    assert median_run(runs).stages.total == 8
