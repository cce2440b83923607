"""``generate`` goes on after a kill, replaces nothing unasked, and tells a program what it made."""

import json
import os
import shutil
import signal

import av
import pytest

import vidsparse
from vidsparse.cli import run
from vidsparse.comparison.job import Job
from vidsparse.pipelines.running import generate as pipeline
from vidsparse.pipelines.running.video import read_video

SMALL = ["--frames", 5, "--height", 48, "--width", 48, "--steps", 2, "--guidance", 1]
SMALL += ["--density", 0.3, "--set", "min_tokens=0"]
PROMPTS = ["a red circle", "a blue square", "a green star"]


def generate_and_die(command, when):
    """Killed at the second video; in a process of its own, where nothing is put back."""
    write, left = Job.write, [2]

    def write_or_die(job, path, *rest):
        left[0] -= 1
        if left[0] or when == "after":
            write(job, path, *rest)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    Job.write = write_or_die  # pyright: ignore[reportAttributeAccessIssue]
    run([*map(str, command)])


@pytest.fixture
def generations(monkeypatch):
    """The prompt of every video that is made."""
    made = []
    generate = pipeline.generate

    def count(pipe, request, on_step=None):
        made.append(request.prompt)
        return generate(pipe, request, on_step)

    monkeypatch.setattr(pipeline, "generate", count)
    return made


@pytest.fixture
def no_weights(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", load)


@pytest.fixture
def command(tmp_path):
    return command_in(tmp_path)


def command_in(folder):
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return ["generate", "--prompts", folder / "prompts.txt", *SMALL, "-o", folder / "out"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Those of the prompts, made once: copy them."""
    folder = tmp_path_factory.mktemp("videos")
    assert run([*map(str, command_in(folder))]) == 0
    return folder / "out"


@pytest.fixture
def finished(videos, command, tmp_path):
    return shutil.copytree(videos, tmp_path / "out")


def state(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("when", ["before", "after"])
def test_after_sigkill_finished_videos_are_not_made_again(
    cli, command, exit_code, generations, tmp_path, when
):
    """The second video: killed before it is written, or after, before its record is."""
    assert exit_code(lambda: generate_and_die(command, when)) == -signal.SIGKILL
    before = state(tmp_path / "out")
    assert ("001.mp4" in before) == (when == "after")
    code, out, err = cli(*command)
    assert code == 0, err
    assert generations == PROMPTS[1:]
    assert "1 of 3 videos were made before" in err
    assert [line.split()[0] for line in out.splitlines()] == [
        str(tmp_path / "out" / name) for name in ("001.mp4", "002.mp4")
    ]
    after = state(tmp_path / "out")
    assert after["000.mp4"] == before["000.mp4"]
    assert len(after) == 6


def test_when_all_is_finished_nothing_is_loaded_and_all_is_told(
    cli, command, finished, monkeypatch
):
    before = state(finished)
    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", None)
    code, out, err = cli(*command, "--json")
    assert code == 0
    assert "3 of 3 videos were made before" in err
    assert state(finished) == before
    told = json.loads(out)
    assert [video["prompt"] for video in told["videos"]] == PROMPTS
    assert told["failed"] == []


def test_the_cpu_and_its_threads_do_not_count(cli, command, finished, generations, monkeypatch):
    monkeypatch.setattr("vidsparse.comparison.fingerprint.cpu_model", lambda: "another CPU")
    assert cli(*command).code == 0
    assert generations == []


def cut(path):
    os.truncate(path, 100)


@pytest.mark.parametrize(
    ("more", "change", "message"),
    [
        (["--seed", 1], None, "000.mp4 exists and was made with other settings (seed), as do 2 mo"),
        (["--set", "rotate=0.1"], None, "was made with other settings (preset)"),
        (["--steps", 3], None, "was made with other settings (steps)"),
        (["--fps", 5], None, "was made with other settings (fps)"),
        ([], cut, "000.mp4 exists and was changed since it was made: give --overwrite to replace"),
    ],
)
def test_what_is_something_else_is_not_replaced_unless_asked_for(
    cli, command, finished, generations, more, change, message
):
    if change:
        change(finished / "000.mp4")
    before = state(finished)
    code, out, err = cli(*command, *more)
    assert (code, out) == (2, "")
    assert message in err
    assert generations == []
    assert state(finished) == before
    assert cli(*command, *more, "--overwrite").code == 0
    assert generations == (PROMPTS[:1] if change else PROMPTS)
    assert cli(*command, *more).code == 0  # now it is what is asked for
    assert read_video(finished / "000.mp4").shape == (5, 48, 48, 3)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("record", [None, "{}", "[" * 100_000, "null"])
def test_a_file_of_somebody_else_is_not_replaced(cli, command, tmp_path, record):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001.mp4").write_bytes(b"holidays")
    if record is not None:
        (tmp_path / "out" / "001.mp4.json").write_text(record)
    before = state(tmp_path / "out")
    code, _, err = cli(*command)
    assert code == 2
    assert "001.mp4 exists and has no record of vidsparse beside it" in err
    assert state(tmp_path / "out") == before


def test_a_single_file_is_replaced_only_when_asked_for_and_only_by_a_finished_one(cli, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"holidays")
    single = ["generate", PROMPTS[0], *SMALL, "-o", path]
    code, _, err = cli(*single)
    assert code == 2
    assert f"{path} exists: give --overwrite to replace it, or another with -o" in err
    too_short = ["generate", PROMPTS[0], *SMALL[:-2], "--strict", "-o", path, "--overwrite"]
    assert cli(*too_short).code == 1
    assert path.read_bytes() == b"holidays"
    assert cli(*single, "--overwrite").code == 0
    assert read_video(path).shape == (5, 48, 48, 3)


@pytest.mark.parametrize("name", ["index.html", "sheet.png", "dense.mp4", "results.json"])
def test_a_report_replaces_no_file_of_something_else(cli, tmp_path, no_weights, name):
    (tmp_path / name).write_text("mine")
    code, _, err = cli("compare", PROMPTS[0], *SMALL, "-o", tmp_path)
    assert code == 2
    assert f"{tmp_path} holds {name}, and no comparison: give --overwrite" in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_program_is_told_everything_in_one_object(cli, tmp_path, cpu_engine):
    path = tmp_path / "clip.mp4"
    code, out, _ = cli("generate", PROMPTS[0], *SMALL, "--seed", 4, "-o", path, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["path"], told["prompt"], told["seed"]) == (str(path), PROMPTS[0], 4)
    assert (told["preset"], told["steps"]) == ("balanced", 2)
    assert 0 < told["mean_density"] < 1
    assert told["dense_steps_share"] == 0.5
    assert 0 < told["seconds"] < 300
    assert told["engines"] == {cpu_engine: 2 * 8}  # plans, and exact rows
    assert (told["fallbacks"], told["notes"]) == ({}, [])
    with av.open(path) as container:
        about = json.loads(container.metadata["comment"])
    assert about == {
        "prompt": PROMPTS[0], "seed": 4, "steps": 2, "guidance": 1.0, "preset": "balanced",
        "vidsparse": vidsparse.__version__,
    }  # fmt: skip


def test_a_program_is_told_of_a_dense_run_and_of_fallbacks(cli, tmp_path):
    line = ["generate", PROMPTS[0], *SMALL[:-4], "--json"]
    told = json.loads(cli(*line, "--dense", "-o", tmp_path / "dense.mp4").out)
    assert (told["preset"], told["mean_density"], told["engines"]) == (None, 1.0, {})
    told = json.loads(cli(*line, "-o", tmp_path / "short.mp4").out)
    assert told["mean_density"] == 1.0
    assert any("too few to gain" in reason for reason in told["fallbacks"])


def test_a_program_is_told_of_prompts_that_failed(cli, command):
    command.remove("min_tokens=0")
    command.remove("--set")
    code, out, err = cli(*command, "--strict", "--json")
    told = json.loads(out)
    assert (code, told["videos"]) == (1, [])
    assert [each["prompt"] for each in told["failed"]] == PROMPTS
    assert "cannot be sparse" in told["failed"][0]["error"]
    assert "3 of 3 prompts failed" in err
