"""The judge that ships: right about renders, silent about what nobody asked, plain when refused."""

import numpy as np
import pytest

from examples.train_tiny.common import to_uint8
from examples.train_tiny.evaluate import _asked
from examples.train_tiny.render import full_grid, render
from examples.train_tiny.scenes import draw_scenes, plain_prompt
from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.catalogue import AS_ASKED, DENSE
from vidsparse.metrics.judge import Judge
from vidsparse.metrics.scores import Scorer
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.pipelines.running.prompts import read_parts

FILE = TINY / "judge.safetensors"
CLIPS = 12


@pytest.fixture(scope="module")
def judge():
    return Judge(FILE)


@pytest.fixture(scope="module")
def rendered():
    """Clips and what their prompts ask for."""
    rng = np.random.default_rng(5)
    labels = _asked(rng, CLIPS)
    clips = render(draw_scenes(rng, labels), full_grid(CLIPS, 9, 96, 128, "cpu")).clips
    frames = to_uint8(clips).permute(0, 2, 3, 4, 1).numpy()
    return [(clip, read_parts(plain_prompt(labels, i))) for i, clip in enumerate(frames)]


def test_it_recognises_renders(judge, rendered):
    metric = Accumulated("judge/as_asked", judge=judge)
    for frames, asked in rendered:
        assert {"sprites", "shape", "colour", "motion", "ground", "pattern"} <= asked.keys()
        metric.update(frames, asked)
    assert metric.compute() > 0.97


def test_it_sees_when_something_else_was_asked_for(judge, rendered):
    wrong = {"shape": "star", "colour": "white"}
    for frames, _ in rendered:
        seen = judge.recognise(frames)
        others = {part: next(n for n in judge.net.names[part] if n != seen[part]) for part in wrong}
        assert judge.score(frames, seen) == 1
        assert judge.score(frames, {**seen, **others}) == pytest.approx(1 - 2 / len(seen))


def test_a_mirrored_clip_moves_the_other_way(judge, rendered):
    turned = {"left": "right", "right": "left"}
    across = [(f, asked["motion"]) for f, asked in rendered if asked["motion"] in turned]
    assert across
    for frames, motion in across:
        mirrored = np.ascontiguousarray(frames[:, :, ::-1])
        assert judge.score(mirrored, {"motion": turned[motion]}) == 1


def test_a_scorer_judges_a_clip_and_its_dense_run_when_it_is_asked_to(rendered):
    (frames, asked), (other, _) = rendered[:2]
    values = Scorer(judge=FILE).score(other, frames, asked=asked).values
    seen, dense = values[AS_ASKED], values[AS_ASKED + DENSE]
    assert seen is not None
    assert dense is not None
    assert seen < 0.8 < dense
    assert AS_ASKED not in Scorer(judge=FILE).score(other, frames).values


def test_without_a_judge_nobody_can_be_asked(rendered):
    frames, _ = rendered[0]
    with pytest.raises(BadInputError, match="whether a clip shows circle, red: give the scorer"):
        Scorer().score(frames, frames, asked={"shape": "circle", "colour": "red"})


def test_what_it_does_not_know_is_refused(judge, rendered, tmp_path):
    frames, _ = rendered[0]
    with pytest.raises(BadInputError, match="knows no shape named 'dog'"):
        judge.score(frames, {"shape": "dog"})
    with pytest.raises(BadInputError, match="knows no weather named 'rain'"):
        judge.score(frames, {"weather": "rain"})
    with pytest.raises(BadInputError, match="names nothing that the judge knows"):
        judge.score(frames, {})
    with pytest.raises(BadInputError, match="not the weights of a judge"):
        Scorer(judge=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("part", "prompt"),
    [
        ("shape", "a red {}"),
        ("colour", "a {} circle"),
        ("tone", "a red circle on a {} blue background"),
        ("ground", "a red circle on a {} background"),
        ("pattern", "a red circle on a blue {} background"),
    ],
)
def test_its_choices_are_words_of_the_language(judge, part, prompt):
    choices = [choice for choice in judge.net.names[part] if choice != "mid"]  # which is not said
    said = [read_parts(prompt.format(choice)) for choice in choices]
    assert [parts and parts[part] for parts in said] == choices
