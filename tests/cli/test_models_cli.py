"""The commands on models that are not Wan, from folders: videos and images."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from vidsparse.cli import run
from vidsparse.pipelines.running.video import read_video

SPARSE = "--preset draft --density 0.3 --set min_tokens=0 --set block=16"
SIZES = {
    "cogvideox": (9, 96, 64),
    "ltx": (9, 64, 96),
    "hunyuan_video": (9, 64, 64),
    "mochi": (13, 64, 96),
    "flux": (1, 48, 64),
    "pixart": (1, 128, 160),
}
GRIDS = {
    "cogvideox": ("226+3x6x4", 226),
    "ltx": ("3x16x24", 0),
    "hunyuan_video": ("3x8x8+256", 256),
    "mochi": ("3x4x6+256", 256),
    "flux": ("512+1x24x32", 512),
    "pixart": ("1x8x10", 0),
}


def arguments(models, name, *, steps=3):
    """The model with a size and a few steps."""
    frames, height, width = SIZES[name]
    size = f"--height {height} --width {width} --steps {steps}".split()
    return [
        *("--model", models / name, *size, *SPARSE.split()),
        *(("--frames", frames) if frames > 1 else ()),
    ]


@pytest.mark.parametrize("name", SIZES)
def test_a_video_or_an_image_is_made_sparsely(cli, models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    frames, height, width = SIZES[name]
    code, out, err = cli("generate", "a red circle", *arguments(models, name))
    assert code == 0, err
    assert float(re.findall(r"mean density (\d\.\d+)", out)[0]) < 1
    assert "nothing fell back to dense" in out
    (file,) = tmp_path.iterdir()
    if frames > 1:
        assert file.name == "out.mp4"
        assert read_video(file).shape == (frames, height, width, 3)
    else:
        assert file.name == "out.png"
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("RGB", (width, height))


@pytest.mark.parametrize("name", SIZES)
def test_a_plan_has_the_grid_text_and_layers(cli, models, name):
    frames, height, width = SIZES[name]
    size = ["--size", f"{width}x{height}", *(("--frames", frames) if frames > 1 else ())]
    code, out, err = cli("plan", "--model", models / name, *size, "--steps", 4, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["grid"], found["text_tokens"], found["layers"]) == (*GRIDS[name], 2)
    assert any("text tokens" in each for each in found["notes"]) == bool(found["text_tokens"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cogvideox", "--frames 10", "frames 10 is not possible: the model takes 4k+1; nearest "
         "are 9 and 13"),
        ("cogvideox", "--height 72", "multiples of 16; nearest are 64 and 80"),
        ("hunyuan_video", "--width 72", "multiples of 16"),
        ("ltx", "--height 48", "multiples of 32; nearest are 32 and 64"),
        ("mochi", "--frames 9", "the model takes 6k+1; nearest are 7 and 13"),
        ("mochi", "--steps 1", "steps must be at least 2, got 1"),
        ("flux", "--frames 5", "frames 5 is not possible: the model makes an image"),
        ("flux", "--width 47", "width 47 is not possible: the model takes multiples of 2; "
         "nearest are 46 and 48"),
        ("flux", "-o x.mp4", "it is an image, and its suffix must be one of .png, .npy"),
        ("ltx", "-o x.png", "its suffix must be one of .mp4, .webm, .npy"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_refused(
    cli, models, tmp_path, monkeypatch, name, changes, message
):
    monkeypatch.chdir(tmp_path)
    line = [*arguments(models, name), *changes.split()]
    code, out, err = cli("generate", "a red circle", *line)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_file_of_prompts_makes_a_folder_of_images(cli, models, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    line = ["--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "out"]
    code, _, err = cli("generate", *arguments(models, "flux"), *line)
    assert code == 0, err
    assert sorted(file.name for file in (tmp_path / "out").glob("*.png")) == ["000.png", "001.png"]


def test_inspect_draws_the_blocks_of_text_and_image(cli, models, tmp_path):
    line = [*arguments(models, "flux", steps=4), "--layers", 1, "--at-steps", 3]
    code, out, err = cli("inspect", "a red circle", *line, "-o", tmp_path, "--json")
    assert code == 0, err
    assert json.loads(out)["grid"] == "1x24x32"
    assert (tmp_path / "layer01-step003.png").is_file()


@pytest.mark.parametrize(("name", "suffix"), [("ltx", "mp4"), ("flux", "png")])
def test_compare_reports_a_video_and_an_image(models, tmp_path, capsys, name, suffix):
    line = ["compare", "a red circle", *arguments(models, name), "-o", tmp_path]
    assert run([str(each) for each in line]) == 0
    out = capsys.readouterr().out
    assert f"dense.{suffix}, draft.{suffix}" in out
    results = json.loads((tmp_path / "results.json").read_text())
    frames, height, width = SIZES[name]
    (clip,) = results["clips"]
    assert np.load(tmp_path / clip["frames"]["sparse"]).shape == (frames, height, width, 3)
    assert clip["mean_density"] < 1
    assert clip["scores"]["psnr"] > 10
    assert len(clip["curves"]["psnr"]) == frames
    temporal = {"temporal_psnr", "vbench/temporal_flickering"}
    assert temporal & clip["scores"].keys() == (temporal if frames > 1 else set())
    report = (tmp_path / "report.md").read_text()
    assert ("one frame, so nothing is measured between frames" in report) == (frames == 1)
    assert (tmp_path / f"draft.{suffix}").is_file()
    assert (tmp_path / "index.html").stat().st_size > 10_000
