"""A comparison that was killed goes on: nothing is repeated, nothing is half-written."""

import errno
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from vidsparse.cli import run
from vidsparse.comparison import store
from vidsparse.comparison.machine import cpu_model
from vidsparse.comparison.spec import Case
from vidsparse.comparison.store import Clips
from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.running import generate as pipeline
from vidsparse.pipelines.running.generate import Request

PROMPT = "a red circle moving right"
SMALL = ["--frames", 5, "--height", 48, "--width", 48, "--steps", 2, "--guidance", 1]
COMMAND = ["compare", PROMPT, "--seeds", "0,1", "--preset", "draft", *SMALL]
COMMAND += ["--set", "min_tokens=0"]


def compare_and_die(folder, at):
    """Killed in the middle of an array; in a process of its own, where nothing is put back."""
    save, left = store.save_array, [at]

    def save_or_die(path, array):
        left[0] -= 1
        if not left[0]:
            path.write_bytes(b"half of an array")
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, array)

    store.save_array = save_or_die
    run([*map(str, COMMAND), "-o", str(folder)])


@pytest.fixture
def generations(monkeypatch):
    """Every video that is made, as (seed, whether sparse); warm-ups do not count."""
    made = []
    generate = pipeline.generate

    def count(pipe, request, on_step=None):
        if on_step is not None:
            made.append((request.seed, hasattr(pipe.transformer, "_vidsparse_session")))
        return generate(pipe, request, on_step)

    monkeypatch.setattr(pipeline, "generate", count)
    return made


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """One that is finished, made once: copy it."""
    folder = tmp_path_factory.mktemp("comparison")
    assert run([*map(str, COMMAND), "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def finished(comparison, tmp_path):
    return shutil.copytree(comparison, tmp_path, dirs_exist_ok=True)


def whole(folder):
    """Read every file of the clips; return their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".npy" and not path.name.startswith("."):
            assert np.load(path).size
        if path.suffix == ".json":
            json.loads(path.read_text())
    return [path.name for path in files]


def test_after_sigkill_what_was_finished_is_not_made_again(cli, exit_code, generations, tmp_path):
    # saved so far: dense, its latents and draft of seed 0, dense of seed 1; then its latents
    assert exit_code(lambda: compare_and_die(tmp_path, at=5)) == -signal.SIGKILL
    names = whole(tmp_path / "clips")
    assert [name.startswith(".vidsparse-") for name in names].count(True) == 1
    assert names.count("dense.npy") == 2
    assert names.count("dense.json") == names.count("draft.json") == 1
    assert not (tmp_path / "results.json").exists()
    code, _, err = cli(*COMMAND, "-o", tmp_path)
    assert code == 0
    assert "2 of 7 pieces of work were done before" in err
    assert generations == [(1, False), (1, True)]
    assert not [name for name in whole(tmp_path) if name.startswith(".")]
    assert len(json.loads((tmp_path / "results.json").read_text())["clips"]) == 2


def test_a_finished_comparison_loads_no_weights_and_writes_the_same_again(
    cli, comparison, finished, monkeypatch
):
    first = (finished / "results.json").read_text()
    first = json.loads(first.replace(str(comparison), str(finished)))  # in the command
    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", None)
    (finished / "results.json").unlink()
    (finished / "draft.mp4").unlink()
    code, _, err = cli(*COMMAND, "-o", finished)
    assert code == 0
    assert "7 of 7 pieces of work were done before" in err
    assert (finished / "draft.mp4").exists()
    again = json.loads((finished / "results.json").read_text())
    assert again | {"created": ""} == first | {"created": ""}


def test_a_changed_setting_is_made_again_and_only_what_depends_on_it(cli, finished, generations):
    code, _, err = cli(*COMMAND, "--density", 0.5, "-o", finished)
    assert code == 0
    assert "made again, since these changed: preset" in err
    assert generations == [(0, True), (1, True)]
    generations.clear()
    more = [*COMMAND, "--density", 0.5]
    more[more.index("0,1")] = "1,2"
    assert cli(*more, "-o", finished).code == 0
    assert generations == [(2, False), (2, True)]
    generations.clear()
    more[more.index(2)] = 3  # steps
    assert "steps" in cli(*more, "-o", finished).err
    assert generations == [(1, False), (1, True), (2, False), (2, True)]


def test_more_repeats_take_turns_and_repeat_nothing_else(cli, finished, generations):
    code, _, err = cli(*COMMAND, "--repeats", 3, "-o", finished)
    assert code == 0
    assert "7 of 15 pieces of work were done before" in err
    assert generations == [(0, False), (0, True), (1, False), (1, True)] * 2
    results = json.loads((finished / "results.json").read_text())
    for clip in results["clips"]:
        assert len(clip["all_seconds"]) == len(clip["all_dense_seconds"]) == 3
        assert clip["seconds"] == sorted(clip["all_seconds"])[1] == clip["time"]["total"]
        assert clip["dense_seconds"] == sorted(clip["all_dense_seconds"])[1]
    ratios = [dense / sparse for clip in results["clips"]
              for dense, sparse in zip(clip["all_dense_seconds"], clip["all_seconds"], strict=True)
             ]  # fmt: skip
    speed = results["summary"][0]["speedup"]
    assert (speed["runs"], speed["median"]) == (6, pytest.approx(np.median(ratios)))


def test_every_run_knows_its_machine_and_the_report_shows_it(cli, finished):
    (clip, *_) = json.loads((finished / "results.json").read_text())["clips"]
    for machine in (clip["machine"], clip["dense_machine"]):
        assert machine["cpu"] == cpu_model()
        assert machine["threads"] == torch.get_num_threads()
        assert machine["cores"] >= 1
        assert machine["load"] >= 0
    _, out, _ = cli(*COMMAND, "-o", finished)
    assert f"{cpu_model()}, " in out
    assert ", load average " in out
    assert f"{cpu_model()}, " in (finished / "report.md").read_text().replace("\\", "")


def test_on_another_cpu_times_are_taken_again(cli, finished, generations, monkeypatch):
    monkeypatch.setattr("vidsparse.comparison.fingerprint.cpu_model", lambda: "another CPU")
    code, _, err = cli(*COMMAND, "-o", finished)
    assert code == 0
    assert "made again, since these changed: machine" in err
    assert len(generations) == 4


def test_a_file_that_was_cut_off_is_made_again(cli, finished, generations):
    path = next(finished.glob("clips/*-s1/draft.npy"))
    os.truncate(path, 100)
    assert cli(*COMMAND, "-o", finished).code == 0
    assert generations == [(1, True)]
    assert len(np.load(path)) == 5


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def other_shape(path):
    np.save(path, np.zeros((5, 32, 32, 3), np.uint8))


def other_dtype(path):
    np.save(path, np.load(path).astype(np.float32))


def edit(change):
    def apply(path):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return apply


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "a changed byte": ("draft.npy", change_byte),
    "another shape": ("draft.npy", other_shape),
    "another dtype": ("draft.npy", other_dtype),
    "changed latents": ("dense.latents.npy", change_byte),
    "no frames": ("draft.npy", os.unlink),
    "a pipe": ("draft.npy", make_pipe),
    "one field more": ("draft.json", edit(lambda record: record.update(more=1))),
    "one field less": ("draft.json", edit(lambda record: record.pop("stages"))),
    "another value": ("draft.json", edit(lambda record: record.update(mean_density=0.1))),
    "another hash": ("draft.json", edit(lambda record: record.update(frames_sha256="0" * 64))),
    "no settings": ("draft.json", edit(lambda record: record.update(settings=[1]))),
    "no object": ("draft.json", lambda path: path.write_text("[1, 2]")),
    "deep nesting": ("draft.json", lambda path: path.write_text("[" * 100_000)),
    "no text": ("draft.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "other scores": ("draft.scores.json", edit(lambda record: record["values"].pop("psnr"))),
    "other times": ("dense-engines.json", edit(lambda record: record.update(milliseconds={}))),
}


PAIRS = list(zip(list(DAMAGE)[::2], list(DAMAGE)[1::2], strict=True))  # of the two clips


@pytest.mark.parametrize("damages", PAIRS, ids=" and ".join)
def test_what_was_changed_on_disk_is_made_again_and_said(cli, finished, generations, damages):
    first = json.loads((finished / "results.json").read_text())
    changed, expected = [], []
    for seed, damage in zip((1, 0), damages, strict=True):
        name, change = DAMAGE[damage]
        path = next(finished.glob(f"clips/*-s{seed}/{name}"))
        change(path)
        changed.append(str(path.relative_to(finished)))
        made = {"draft": [(seed, True)], "dense": [(seed, False)]}
        expected += made.get(
            name.removesuffix(".npy").removesuffix(".json").removesuffix(".latents"), []
        )
    code, _, err = cli(*COMMAND, "-o", finished)
    assert code == 0
    (said,) = re.findall(r"made again, since changed on disk: (.*)", err)
    assert sorted(said.split(", ")) == sorted(changed)
    assert generations == sorted(expected)
    again = json.loads((finished / "results.json").read_text())
    for ours, theirs in zip(again["clips"], first["clips"], strict=True):
        assert ours["scores"] == theirs["scores"]
        assert ours["mean_density"] == theirs["mean_density"]


def test_a_full_disk_is_said_in_one_sentence_and_leaves_no_half_file(cli, tmp_path, monkeypatch):
    def full(path, array):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vidsparse.comparison.store.save_array", full)
    code, _, err = cli(*COMMAND, "-o", tmp_path)
    assert code == 1
    pattern = (
        r"vidsparse: cannot write \S+dense\.npy \(No space left on device\): free some space or "
        r"choose another folder"
    )
    assert re.fullmatch(pattern, err.splitlines()[-1])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_report_that_does_not_fit_says_which_file(cli, finished, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (finished / "index.html").read_bytes()
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    code, _, err = cli(*COMMAND, "-o", finished)
    assert code == 1
    assert "(No space left on device)" in err.splitlines()[-1]
    assert str(finished) in err.splitlines()[-1]
    assert (finished / "index.html").read_bytes() == before


def test_two_processes_do_not_write_to_one_folder(cli, tmp_path):
    with Clips(tmp_path).locked():
        code, _, err = cli(*COMMAND, "-o", tmp_path)
    assert code == 2
    assert f"another vidsparse compare is writing to {tmp_path}" in err
    with Clips(tmp_path).locked(), pytest.raises(BadInputError), Clips(tmp_path).locked():
        pass


def test_a_case_has_a_folder_of_its_own_whatever_the_prompt():
    def key(prompt, seed=0):
        request = Request(
            prompt=prompt, frames=5, height=64, width=64, steps=2, guidance=1.0, seed=seed
        )
        return Case(prompt_index=0, request=request).key

    prompts = ["a cat", "A cat", "../../etc/passwd", "<script>", "猫", "a" * 500, "a cat\x00"]
    keys = [key(prompt, seed) for prompt in prompts for seed in (0, 1)]
    assert len(set(keys)) == len(keys)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in keys)
    assert max(map(len, keys)) < 60


def test_an_array_is_never_beside_the_record_of_another(tmp_path, monkeypatch):
    clips = Clips(tmp_path)
    request = Request(prompt="a", frames=5, height=64, width=64, steps=2, guidance=1.0)
    case = Case(prompt_index=0, request=request)
    clips.save(case, "dense", {"steps": 2}, {"seconds": 1.0}, {"dense": np.zeros(3)})
    assert clips.record(case, "dense", {"steps": 2}) == {"seconds": 1.0}
    assert clips.record(case, "dense", {"steps": 3}) is None
    assert list(clips.changed) == ["steps"]

    def disk_full(path, text, **options):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_text", disk_full)
    with pytest.raises(VidsparseError, match=r"cannot write .*dense\.json \(no space left\)"):
        clips.save(case, "dense", {"steps": 3}, {"seconds": 2.0}, {"dense": np.ones(3)})
    assert clips.record(case, "dense", {"steps": 2}) is None
