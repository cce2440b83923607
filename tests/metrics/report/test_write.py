"""The files of a report: whole, true to the numbers, and harmless whatever a prompt says."""

import csv
import io
import json
import re

import av
import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.report import write
from vidsparse.metrics.report.packed_video import QUALITIES, difference, packed_video
from vidsparse.metrics.report.results import Results, read_results
from vidsparse.metrics.report.write import previews, shown_clips, write_report


@pytest.fixture
def page(tmp_path, results):
    write_report(tmp_path, results)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_all_files_are_there_and_nothing_half_written(tmp_path, page):
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"clips", "index.html", "report.md", "results.csv", "results.json"}


def test_results_come_back_as_they_were(tmp_path, results, page):
    assert read_results(tmp_path / "results.json") == results


def test_what_users_wrote_is_text(page, tmp_path, results):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in markdown.split("```")[0]
    rows = list(csv.reader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert "'=SUM(A1) | a blue ball" in {row[1] for row in rows}


def test_nothing_is_loaded_from_elsewhere(page):
    assert re.findall(r'\b(?:src|href|srcset|action|poster)="([^"]*)"', page) == ["data:,"]
    assert "://" not in page.split('type="text/plain"')[0]
    assert "default-src 'none'" in page


def test_every_psnr_stands_beside_what_it_depends_on(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for said in ("mean density", "dense steps", "17%", "noise floor 41.0 dB", "2 seeds (0, 1)"):
        assert said in text, said
    assert "Fewer than five prompts" in text
    assert "radial fell back to dense: too short (2 calls)" in text


def test_stand_ins_are_named_as_such(page, tmp_path):
    assert "stand-in for vbench/motion_smoothness" in page
    assert "stand-in for vbench/motion" in (tmp_path / "report.md").read_text().replace("\\", "")
    assert "(dense 0.980)" in page


def test_an_identical_clip_is_said_to_be(page, results, tmp_path):
    assert "radial, seed 0: identical at mean density" in page
    everything = results.model_copy(deep=True)
    for row in everything.summary:
        row.scores["psnr"].mean = row.scores["psnr"].low = row.scores["psnr"].high = None
    write_report(tmp_path, everything)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "balanced, draft, radial: identical to dense" in page


def test_the_table_has_every_number_once(tmp_path, page, results):
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    keys = [(r["preset"], r["prompt"], r["seed"], r["frame"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    expected = sum(
        4 + len(clip.scores) + sum(map(len, clip.curves.values())) for clip in results.clips
    )
    assert len(rows) == expected
    infinite = [r for r in rows if r["metric"] == "psnr" and r["frame"] == "" and not r["value"]]
    assert [(r["preset"], r["seed"]) for r in infinite] == [("radial", "0")]


def test_a_video_holds_dense_sparse_and_difference_side_by_side(results, tmp_path):
    clip = results.clips[0]
    dense, sparse = (np.load(tmp_path / clip.frames[name]) for name in ("dense", "sparse"))
    video = packed_video(dense, sparse, 12.0, QUALITIES[0])
    with av.open(io.BytesIO(video)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 12
    assert frames[0].shape == (48, 192, 3)
    for pane, raw in enumerate((dense, sparse, difference(dense[5], sparse[5])[None])):
        shown = frames[5][:, pane * 64 : (pane + 1) * 64].astype(float)
        assert np.abs(shown - raw[-1 if pane == 2 else 5]).mean() < 12


def test_no_difference_is_black_and_the_largest_is_bright():
    ours = np.zeros((2, 2, 3), np.uint8)
    theirs = ours.copy()
    theirs[0, 0] = (0, 255, 0)
    heat = difference(ours, theirs).astype(int).sum(axis=-1)
    assert heat[1, 1] < 10
    assert heat[0, 0] > 500


def test_previews_get_smaller_until_they_fit(tmp_path, results):
    best = sum(len(each.video) for each in previews(tmp_path, results))
    for share in (0.9, 0.6):
        made = previews(tmp_path, results, most_bytes=int(share * best))
        assert len(made) == len(results.clips)
        assert sum(len(each.video) for each in made) <= share * best
    few = previews(tmp_path, results, most_bytes=12_000)
    assert 0 < len(few) < len(results.clips)


def test_of_many_clips_the_worst_median_and_best_of_each_preset_are_shown(results, monkeypatch):
    monkeypatch.setattr(write, "MOST_CLIPS", 10)
    shown = shown_clips(results)
    assert len(shown) == 10
    for preset in ("balanced", "draft", "radial"):
        own = [c for c in results.clips if c.preset == preset]
        own.sort(key=lambda c: np.inf if c.scores["psnr"] is None else c.scores["psnr"])
        assert {id(own[0]), id(own[-1])} <= {id(clip) for clip in shown}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 1: schema_version"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_other_files_are_refused(tmp_path, results, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.model_dump(mode="json") | change))
    with pytest.raises(BadInputError, match=message):
        read_results(path)


def test_frames_that_are_not_there_are_named_and_no_page_is_left(tmp_path, results):
    (tmp_path / results.clips[0].frames["sparse"]).unlink()
    with pytest.raises(BadInputError, match=r"balanced\.npy cannot be read"):
        write_report(tmp_path, results)
    assert not (tmp_path / "index.html").exists()


def test_a_score_that_is_not_a_number_is_refused(results):
    values = results.model_dump(mode="python")
    values["clips"][0]["scores"]["psnr"] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Results.model_validate(values)
