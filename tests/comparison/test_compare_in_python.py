"""``vidsparse.compare``: the comparison of a pipeline in memory, in a script or a notebook."""

import contextlib
import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vidsparse
from vidsparse.comparison import of_pipe
from vidsparse.comparison.models import LoadedModel
from vidsparse.errors import BadInputError
from vidsparse.metrics.report.results import read_results
from vidsparse.metrics.weights import Weights
from vidsparse.pipelines.running import generate as pipeline
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.video import read_video, write_video

PROMPT = "a red circle moving right"
SMALL: dict[str, Any] = {
    "frames": 5,
    "height": 48,
    "width": 48,
    "steps": 2,
    "guidance": 1.0,
    "min_tokens": 0,
}


class Told:
    """A reporter that remembers what it was told."""

    def __init__(self):
        self.notes, self.done = [], []

    def note(self, sentence):
        self.notes.append(sentence)

    def loading(self, what):
        return contextlib.nullcontext()

    def on_worker(self):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def board(self, number, pace):
        self.number, self.steps = number, []
        yield self

    @contextlib.contextmanager
    def piece(self, piece):
        yield
        self.done.append(piece.label)

    def finish(self, piece, seconds):
        raise AssertionError("there is no cluster")

    def on_step(self, done, total):
        self.steps.append((done, total))


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """A comparison of two presets and who was told of it."""
    folder, told = tmp_path_factory.mktemp("made"), Told()
    found = vidsparse.compare(
        pipe, ["draft", "random"], PROMPT, out=folder, progress=told, noise_floor=True, **SMALL
    )
    return found, told


@pytest.fixture
def no_run(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("something was generated")

    monkeypatch.setattr(pipeline, "generate", run)


def state(pipe):
    """Everything that a session or a probe attaches to a pipeline, and the bar it came with."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module)
        for name, m in component.named_modules()
    ]
    return hooks, {k: v for k, v in vars(pipe).items() if k == "_progress_bar_config"}


def test_it_writes_the_files_that_it_names(made):
    found, _ = made
    names = {"index.html", "report.md", "results.csv", "results.json", "sheet.png"}
    assert found.files.keys() == names | {"dense.mp4", "draft.mp4", "random.mp4"}
    assert all(path.stat().st_size and path.parent == found.folder for path in found.files.values())
    assert read_video(found.files["draft.mp4"]).shape == (5, 48, 48, 3)
    assert read_results(found.files["results.json"]) == found.results
    assert str(found).splitlines()[0].startswith("draft: ")
    assert str(found).endswith("index.html")


def test_it_scores_each_preset_against_dense(made, cpu_engine):
    found, _ = made
    results = found.results
    assert [clip.preset for clip in results.clips] == ["draft", "random"]
    assert (results.prompts, results.seeds, results.steps) == ([PROMPT], [0], 2)
    for clip in results.clips:
        dense, sparse = (np.load(found.folder / clip.frames[name]) for name in ("dense", "sparse"))
        error = np.square(dense.astype(float) - sparse).mean(axis=(1, 2, 3))
        psnr = 10 * np.log10(255**2 / error)
        assert clip.scores["psnr"] == pytest.approx(psnr.mean())
        assert 0 < clip.mean_density < 1
        assert clip.engines == {cpu_engine: 8}
    assert results.noise_floor is not None
    assert {"psnr", "ssim", "judge/as_asked"} <= results.summary[0].scores.keys()
    assert results.command == (
        "vidsparse.compare(pipe, presets=['draft', 'random'], prompts=['a red circle moving "
        "right'], seeds=[0], frames=5, height=48, width=48, steps=2, guidance=1.0, "
        "noise_floor=True, min_tokens=0)"
    )


def test_it_tells_who_asked_of_every_piece(made):
    _, told = made
    assert told.number == len(told.done) == 3 + 1 + 1 + 2
    assert told.done[0] == f"dense, {PROMPT}, seed 0"
    assert (2, 2) in told.steps


def test_the_command_line_makes_the_same_frames(made, tmp_path):
    from vidsparse.cli import run

    found, _ = made
    small = [f"--{name}={value:g}" for name, value in SMALL.items() if name != "min_tokens"]
    command = ["compare", PROMPT, "--preset", "draft", *small, "--set", "min_tokens=0"]
    assert run([*command, "-o", str(tmp_path)]) == 0
    for file in ("dense.npy", "draft.npy"):
        (ours,), (theirs,) = (list(f.glob(f"clips/*/{file}")) for f in (found.folder, tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()
        assert ours.parent.name == theirs.parent.name
    theirs = json.loads((tmp_path / "results.json").read_text())["clips"][0]
    ours = found.results.clips[0].model_dump(mode="json")
    for name in ("scores", "curves", "mean_density", "density", "head_density", "sigmas"):
        assert ours[name] == theirs[name]


def test_the_pipeline_is_given_back_as_it_was(pipe, tmp_path):
    pipe.set_progress_bar_config(desc="mine")
    before = state(pipe)
    vidsparse.compare(pipe, "draft", PROMPT, out=tmp_path, progress=False, **SMALL)
    assert state(pipe) == before
    assert vidsparse.session_of(pipe) is None


def test_it_is_given_back_when_a_run_fails(pipe, tmp_path):
    before = state(pipe)
    asked = SMALL | {"min_tokens": 1000, "strict": True, "progress": False}
    with pytest.raises(vidsparse.DenseFallbackError, match="min_tokens"):
        vidsparse.compare(pipe, "draft", PROMPT, out=tmp_path, **asked)
    assert state(pipe) == before
    assert vidsparse.session_of(pipe) is None


def test_a_second_call_makes_only_what_is_new(made, pipe, monkeypatch):
    found, _ = made
    runs = []
    generate = pipeline.generate

    def count(pipe, request, on_step=None):
        runs.append(request.seed) if on_step else None
        return generate(pipe, request, on_step)

    monkeypatch.setattr(pipeline, "generate", count)
    told = Told()
    asked = SMALL | {"progress": told, "noise_floor": True}
    again = vidsparse.compare(pipe, ["draft", "random"], PROMPT, out=found.folder, **asked)
    assert runs == []
    assert told.notes == ["7 of 7 pieces of work were done before"]
    assert again.results.clips == found.results.clips
    weight = pipe.transformer.proj_out.weight
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        told = Told()
        vidsparse.compare(pipe, "draft", PROMPT, out=found.folder, progress=told, **SMALL)
    finally:
        with torch.no_grad():
            weight.div_(1.5)
    assert runs == [0, 0]
    assert "made again, since these changed: weights" in told.notes


def test_weights_are_told_apart_by_their_numbers_and_configs(pipe):
    known = LoadedModel(pipe).weights()
    assert known == LoadedModel(load_pipeline()).weights()
    other = load_pipeline()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, flow_shift=9.0)
    assert LoadedModel(other).weights() != known


def test_a_preset_of_ones_own_is_compared_under_its_name(pipe, tmp_path):
    own = dataclasses.replace(vidsparse.PRESETS["draft"].override({"density": 0.5}), name="my own")
    found = vidsparse.compare(pipe, [own], PROMPT, out=tmp_path, progress=False, **SMALL)
    assert found.files["my own.mp4"].exists()
    assert found.results.presets[0].parameters["density"] == 0.5


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": []}, "presets of different names, one at least, got \\[\\]"),
        ({"presets": ["draft", "draft"]}, "presets of different names"),
        ({"presets": "nope"}, "unknown preset 'nope'"),
        ({"nope": 1}, "'draft' has no parameter 'nope'"),
        ({"prompts": []}, "prompts is empty: give one prompt at least"),
        ({"prompts": [" "]}, "the prompt is empty: say what the video shows"),
        ({"seeds": [1, 1]}, r"seeds takes different whole numbers, one at least, got \[1, 1\]"),
        ({"seeds": []}, "seeds takes different whole numbers"),
        ({"seeds": [0.5]}, "seeds takes different whole numbers"),
        ({"repeats": 0}, "repeats must be a whole number from 1 on, got 0"),
        ({"height": 100}, "height 100 is not possible"),
        ({"inputs": {"picture": "a.png"}}, "unknown input 'picture': choose image, last-image"),
        ({"inputs": {"video": "no.mp4"}}, r"--video no\.mp4: there is no such file"),
        ({"strength": 0.5}, r"WanPipeline takes no strength: leave .*\(strength=\) out"),
        ({"weights": Weights(lpips_alex=Path(__file__))}, "weights lpips_alex: .* cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(
    pipe, tmp_path, changes, message
):
    asked = {"presets": "draft", "prompts": PROMPT, **SMALL} | changes
    with pytest.raises(BadInputError, match=message):
        vidsparse.compare(pipe, out=tmp_path / "new", **asked)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_run")
def test_names_that_would_write_over_other_files_are_refused(pipe, tmp_path):
    for name in ("dense", "../up", "a/b", "draft.scores", ""):
        own = dataclasses.replace(vidsparse.PRESETS["draft"], name=name)
        with pytest.raises(BadInputError, match="its files are named after it"):
            vidsparse.compare(pipe, own, PROMPT, out=tmp_path / "new", **SMALL)


@pytest.mark.usefixtures("no_run")
def test_a_folder_of_something_else_is_not_written_to(pipe, tmp_path):
    (tmp_path / "index.html").write_text("a page")
    with pytest.raises(BadInputError, match=r"overwrite=True.*\(out=\)"):
        vidsparse.compare(pipe, "draft", PROMPT, out=tmp_path, **SMALL)
    assert (tmp_path / "index.html").read_text() == "a page"


@pytest.mark.usefixtures("no_run")
def test_what_is_no_pipeline_or_has_a_session_is_refused(pipe, tmp_path):
    with pytest.raises(BadInputError, match="needs a diffusers pipeline, got Wan"):
        vidsparse.compare(pipe.transformer, "draft", PROMPT, out=tmp_path, **SMALL)
    with (
        vidsparse.sparsify(pipe, "draft"),
        pytest.raises(BadInputError, match="has a vidsparse session"),
    ):
        vidsparse.compare(pipe, "draft", PROMPT, out=tmp_path, **SMALL)


def test_files_are_given_by_what_they_are(tmp_path):
    wan = runpy.run_path(str(Path(__file__).parents[1] / "pipelines" / "conftest.py"))
    write_video(tmp_path / "video.mp4", np.zeros((11, 64, 96, 3), np.uint8), 12)
    video: dict[str, Any] = {"steps": 4, "strength": 0.5}
    spec = of_pipe.spec_of(
        wan["video_to_video"](), "draft", PROMPT, 0, video=video,
        inputs={"video": [tmp_path / "video.mp4"]},
    )  # fmt: skip
    (request,) = spec.job.requests
    assert (request.frames, request.height, request.width) == (9, 64, 96)
    assert (request.strength, spec.job.fps) == (0.5, 12)
    assert [file.role for file in request.inputs] == ["video"]


def test_a_pipeline_that_is_compiled_is_known_to_be(pipe):
    assert not LoadedModel(pipe).stack.compile
    pipe.transformer.blocks[0].compile()
    try:
        assert LoadedModel(pipe).stack.compile
    finally:
        pipe.transformer.blocks[0]._compiled_call_impl = None
    assert not LoadedModel(pipe).stack.compile


def test_clips_get_their_report_where_no_memory_is_left_for_a_call(monkeypatch, tmp_path):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("vidsparse.comparison.baselines.time_dense_engines", full)
    made = vidsparse.compare(load_pipeline(), "draft", PROMPT, out=tmp_path, density=0.3, **SMALL)
    assert made.results.dense_engines == {}
    assert "no memory left" in made.results.not_measured["dense attention by engine"]
    assert "dense attention by engine: not measured" in made.files["report.md"].read_text()
