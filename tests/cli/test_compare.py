"""``vidsparse compare``: what it makes, measures, says and refuses."""

import json

import numpy as np
import pytest
from PIL import Image

import vidsparse
from vidsparse.cli import run
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.metrics.judge import Judge
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.pipelines.running.prompts import read_parts
from vidsparse.pipelines.running.video import read_video

PROMPT = "a red circle moving right over a striped blue background"
SMALL = "--frames 5 --height 80 --width 80 --steps 2 --guidance 1 --set min_tokens=0"
SMALLER = ["--frames", "5", "--height", "48", "--width", "48"]


@pytest.fixture
def no_weights(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", load)


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """The folder of a comparison of one preset."""
    folder = tmp_path_factory.mktemp("draft")
    command = ["compare", PROMPT, "--preset", "draft", *SMALL.split(), "-o", str(folder)]
    assert run([*command, "--noise-floor", "--attention-error"]) == 0
    return folder


@pytest.fixture
def results(draft):
    return json.loads((draft / "results.json").read_text())


def test_compare_writes_videos_a_sheet_and_the_results(draft, results):
    assert (results["prompts"], results["seeds"]) == ([PROMPT], [0])
    assert results["command"].startswith(f"vidsparse compare '{PROMPT}' --preset draft")
    assert results["video"]["tokens"] == 200
    names = {"dense.mp4", "draft.mp4", "sheet.png", "clips", "index.html", "results.json"}
    assert names <= {file.name for file in draft.iterdir()}
    assert read_video(draft / "dense.mp4").shape == (5, 80, 80, 3)
    with Image.open(draft / "sheet.png") as sheet:
        assert sheet.width > 6 * 80
    (clip,) = results["clips"]
    frames = [np.load(draft / path) for path in clip["frames"].values()]
    assert {clip.shape for clip in frames} == {(5, 80, 80, 3)}
    assert 10 < clip["scores"]["psnr"] < 60
    assert len(clip["curves"]["psnr"]) == 5
    floor = results["noise_floor"]
    assert floor["identical"] or floor["psnr"] > clip["scores"]["psnr"]


def test_a_clip_says_where_it_is_sparse_and_where_it_errs(results, cpu_engine):
    (clip,) = results["clips"]
    preset = vidsparse.PRESETS["draft"].override({"min_tokens": 0})
    expected = forecast(preset, TokenGrid(2, 10, 10), 2, 8)
    assert clip["mean_density"] == pytest.approx(expected.mean_density, abs=0.01)
    assert clip["sigmas"] == sorted(clip["sigmas"], reverse=True)
    assert len(clip["sigmas"]) == 2
    assert np.array(clip["density"]).shape == (8, 2)
    assert [row[0] for row in clip["density"]] == [1.0] * 8
    assert np.mean(clip["density"]) == pytest.approx(clip["mean_density"])
    assert clip["dense_steps_share"] == 0.5
    assert np.mean(clip["head_density"]) == pytest.approx(np.mean(clip["density"], axis=0)[1])
    assert [row[0] for row in clip["attention_error"]] == [None] * 8
    assert all(0 < row[1] < 1 for row in clip["attention_error"])
    assert clip["step_latent_error"][0] == 0
    assert 0 < clip["step_latent_error"][1] < 2
    assert clip["engines"] == {cpu_engine: 8}


def test_a_clip_says_where_its_time_goes(results):
    (clip,) = results["clips"]
    stages = ("text_encoder", "attention", "planning", "other", "vae")
    for time in (clip["time"], clip["dense_time"]):
        assert time["total"] == pytest.approx(sum(time[name] for name in stages))
        assert all(time[name] > 0 for name in stages if name != "planning")
    assert clip["dense_time"]["planning"] == 0 < clip["time"]["planning"]
    assert clip["seconds"] == clip["time"]["total"]
    assert clip["dense_seconds"] == clip["dense_time"]["total"]


def test_a_clip_of_the_shipped_model_is_judged(cli, draft, results):
    metric = results["metrics"]["judge/as_asked"]
    assert (metric["tier"], metric["better"]) == ("judge", "higher")
    assert results["not_measured"] == {}
    (clip,), (row,) = results["clips"], results["summary"]
    judge = Judge(TINY / "judge.safetensors")
    asked = read_parts(PROMPT)
    assert asked is not None
    assert asked["pattern"] == "striped"
    for name, path in (("judge/as_asked@dense", "dense"), ("judge/as_asked", "sparse")):
        share = judge.score(np.load(draft / clip["frames"][path]), asked)
        assert clip["scores"][name] == pytest.approx(share)
        assert row["scores"][name]["mean"] == pytest.approx(share)
    page = (draft / "index.html").read_text()
    assert "by the shipped model&#39;s judge" in page or "by the shipped model's judge" in page
    assert "Not measured: " not in page


def test_what_the_judge_cannot_judge_is_absent_and_said(cli, draft, small, tmp_path, other_model):
    again = ["--preset", "draft", *small, "--noise-floor", "--attention-error", "-o", draft]
    judged = cli("compare", PROMPT, *again).out
    small += SMALLER
    assert "as asked" in judged.splitlines()[0]
    cases = {
        "foreign": (
            ["red circle"],
            "'red circle' is not in the language of the pipeline that ships",
        ),
        "other": (
            [PROMPT, "--model", other_model],
            "the judge knows only the clips of the pipeline",
        ),
    }
    for name, (arguments, why) in cases.items():
        folder = tmp_path / name
        code, out, _ = cli("compare", *arguments, "--preset", "draft", *small, "-o", folder)
        assert code == 0
        assert "as asked" not in out.splitlines()[0]
        assert f"As asked: not measured, {why}" in " ".join(out.split())
        results = json.loads((folder / "results.json").read_text())
        assert why in results["not_measured"]["As asked"]
        assert "judge/as_asked" not in results["metrics"]
        assert not [m for clip in results["clips"] for m in clip["scores"] if "judge" in m]
        assert not [m for m in results["summary"][0]["scores"] if "judge" in m]
        assert "Not measured: " in (folder / "index.html").read_text()
        assert "As asked: not measured" in (folder / "report.md").read_text()


def test_identical_videos_are_said_to_be_identical(cli, small, tmp_path):
    presets = ["--preset", "random, balanced", "--density", "1"]
    code, out, _ = cli("compare", PROMPT, *presets, *small, *SMALLER, "-o", tmp_path)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line]
    assert [row[0] for row in rows[:4]] == ["preset", "dense", "random", "balanced"]
    assert [row[-2:] for row in rows[2:4]] == [["identical", "1.000"]] * 2
    assert "noise floor not measured (--noise-floor)" in out
    results = json.loads((tmp_path / "results.json").read_text())
    for clip, summary in zip(results["clips"], results["summary"], strict=True):
        assert (clip["identical"], clip["scores"]["psnr"], clip["mean_density"]) == (True, None, 1)
        assert clip["curves"]["psnr"] == [None] * 5
        assert clip["step_latent_error"] == [0.0] * 2
        assert "identical" in summary["sentence"]


def test_every_prompt_with_every_seed_and_what_can_be_said_of_them(cli, small, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# two prompts\n\na red circle moving right\n  a blue square  \n\n")
    options = ["--seeds", "3,1", "--preset", "draft,random", *small, *SMALLER]
    code, out, err = cli("compare", "--prompts", file, *options, "-o", tmp_path / "new")
    assert code == 0
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["prompts"] == ["a red circle moving right", "a blue square"]
    assert results["seeds"] == [3, 1]
    places = [(c["prompt_index"], c["seed"], c["preset"]) for c in results["clips"]]
    expected = [(p, s, name) for p in (0, 1) for s in (3, 1) for name in ("draft", "random")]
    assert places == expected
    draft = results["summary"][0]
    ratios = [c["dense_seconds"] / c["seconds"] for c in results["clips"][::2]]
    assert draft["speedup"]["median"] == pytest.approx(np.median(ratios))
    psnr = [c["scores"]["psnr"] for c in results["clips"][::2]]
    assert draft["scores"]["psnr"]["mean"] == pytest.approx(np.mean(psnr))
    assert (draft["scores"]["psnr"]["prompts"], draft["scores"]["psnr"]["clips"]) == (2, 4)
    assert "draft and random by PSNR: not tested: 2 of 5 prompts" in out
    assert "2 prompts x 2 seeds, seed 3, 1," in out
    assert "draft: attention is" in out
    assert "dense attention takes" in out or "no dense engine here is faster" in out
    lines = [line for line in err.splitlines() if "/" in line[:5]]
    assert len(lines) == 4 * 3 + 1 + 4 * 2
    assert lines[0].startswith("1/21 dense, a red circle moving right, seed 3: ")
    assert all("left" in line for line in lines[:-1])


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "draft,draft"], "different names with commas between"),
        (["--preset", ","], "different names with commas between"),
        (["--preset", "draft,nope"], "unknown preset 'nope'"),
        (["--seeds", "1,x"], "--seeds takes numbers from 0 with commas between, got '1,x'"),
        (["--seeds", "1,1"], "--seeds takes different numbers"),
        (["--seeds", "1,2", "--seed", "3"], "give --seed 3 or --seeds 1,2, not both"),
        (["--prompts", "missing.txt"], "give a prompt or --prompts FILE, not both"),
        (["--weights", "lpips=x.pth"], "--weights has no key 'lpips': did you mean lpips_"),
        (["--weights", "lpips_alex"], "must be KEY=PATH: lpips_alex is torchvision's AlexNet"),
        (["--weights", "lpips_alex=missing.pth"], "there is no missing.pth"),
        (["--weights", f"lpips_alex={__file__}"], "cannot be read"),
        (["--height", "100"], "height 100 is not possible"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_weights_load(cli, tmp_path, arguments, message):
    code, out, err = cli("compare", PROMPT, *arguments, "-o", tmp_path / "new")
    assert (code, out) == (2, "")
    assert err.startswith("vidsparse: ")
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read the prompts"), ("# nothing\n\n", "holds no prompt: write one a line")],
)
def test_a_file_without_prompts_is_refused(cli, tmp_path, text, message):
    file = tmp_path / "prompts.txt"
    if text is not None:
        file.write_text(text)
    code, _, err = cli("compare", "--prompts", file, "-o", tmp_path / "new")
    assert code == 2
    assert message in err


@pytest.mark.usefixtures("no_weights")
def test_an_output_folder_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = cli("compare", PROMPT, "-o", tmp_path / "file")
    assert code == 2
    assert "is a file" in err
