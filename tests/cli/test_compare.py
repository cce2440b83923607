import json

import pytest
from PIL import Image

import vidsparse
from vidsparse.cli.plan import forecast
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.checkpoints import CHECKPOINTS
from vidsparse.pipelines.video import read_video

PROMPT = "a red circle moving right over a striped blue background"
KEYS = (
    "prompt seed steps guidance frames height width tokens device dtype versions command dense "
    "noise_floor_psnr runs psnr ssim mean_density dense_steps_share seconds speedup"
)
RUN_KEYS = (
    "preset parameters seconds speedup psnr ssim mean_density dense_steps_share fallbacks notes"
)


def test_compare_writes_both_videos_a_sheet_and_the_record(cli, small, tmp_path):
    command = ["compare", PROMPT, "--preset", "draft", *small, "-o", tmp_path, "--json"]
    code, out, err = cli(*command, "--noise-floor")
    assert code == 0
    record = json.loads(out)
    assert "Loading" not in err
    assert set(KEYS.split()) <= record.keys()
    (run,) = record["runs"]
    assert set(RUN_KEYS.split()) <= run.keys()
    assert record["psnr"] == run["psnr"]
    assert 10 < record["psnr"] < 60
    assert record["noise_floor_psnr"] is None or record["noise_floor_psnr"] > record["psnr"]
    assert record["speedup"] == record["dense"]["seconds"] / record["seconds"]
    assert (record["tokens"], record["dense_steps_share"]) == (432, 0.5)
    assert record == json.loads((tmp_path / "compare.json").read_text())
    names = ["compare.json", "dense.mp4", "draft.mp4", "sheet.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert read_video(tmp_path / "dense.mp4").shape == (9, 96, 96, 3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 96
    preset = vidsparse.PRESETS["draft"].override({"min_tokens": 0})
    expected = forecast(preset, TokenGrid(3, 12, 12), CHECKPOINTS["tiny"].sigmas(2), 8)
    assert record["mean_density"] == pytest.approx(expected.mean_density, abs=0.01)


def test_compare_of_several_presets_prints_a_row_for_each(cli, small, tmp_path):
    presets = ["--preset", "random, draft", "--density", "1"]
    code, out, _ = cli("compare", PROMPT, *presets, *small, "-o", tmp_path)
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows[:4] == ["preset", "dense", "random", "draft"]
    assert out.count("identical") == 2
    assert "noise floor not measured (--noise-floor)" in out
    record = json.loads((tmp_path / "compare.json").read_text())
    assert "psnr" not in record
    assert [(run["psnr"], run["identical"], run["mean_density"]) for run in record["runs"]] == [
        (None, True, 1.0)
    ] * 2


@pytest.mark.parametrize("presets", ["draft,draft", ",", "draft,nope"])
def test_presets_that_cannot_be_compared_are_refused(cli, tmp_path, presets):
    code, out, err = cli("compare", PROMPT, "--preset", presets, "-o", tmp_path / "new")
    assert (code, out) == (2, "")
    assert err.startswith("vidsparse: ")
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = cli("compare", PROMPT, "-o", tmp_path / "file")
    assert code == 2
    assert "is a file" in err
