"""The files of a report: whole, true to the numbers, and harmless whatever a prompt says."""

import csv
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.report import words, write
from vidsparse.metrics.report.packed_video import QUALITIES, difference, packed_video
from vidsparse.metrics.report.page import Preview, render
from vidsparse.metrics.report.pareto import pareto
from vidsparse.metrics.report.results import Machine, Results, read_results
from vidsparse.metrics.report.write import previews, shown_clips, write_report


class Report(NamedTuple):
    folder: Path
    results: Results

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_results):
    """Written once, to be read."""
    folder = tmp_path_factory.mktemp("report")
    results = make_results(folder)
    write_report(folder, results)
    return Report(folder, results)


@pytest.fixture
def page(report):
    return report.read("index.html")


def test_all_files_are_there_and_nothing_half_written(report):
    names = {path.name for path in report.folder.iterdir()}
    assert names == {"clips", "index.html", "report.md", "results.csv", "results.json"}


def test_the_second_transformer_s_own_guidance_is_said(results):
    assert "guidance 4," in words.conditions(results)
    second = results.model_copy(update={"guidance_2": 3.0})
    assert "guidance 4 and 3," in words.conditions(second)


def test_results_come_back_as_they_were(report):
    assert read_results(report.folder / "results.json") == report.results


def test_what_users_wrote_is_text(page, report):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    markdown = report.read("report.md")
    assert "<script>alert(1)" not in markdown.split("```")[0]
    rows = list(csv.reader(io.StringIO(report.read("results.csv"))))
    assert "'=SUM(A1) | a blue ball" in {row[1] for row in rows}


def test_nothing_is_loaded_from_elsewhere(page):
    found = re.findall(r'\b(?:src|href|srcset|action|poster)="([^"]*)"', page)
    assert {address.split(",")[0] for address in found} == {"data:", "data:image/png;base64"}
    assert "://" not in page.split('type="text/plain"')[0]
    assert "default-src 'none'" in page


def test_every_psnr_stands_beside_what_it_depends_on(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for said in (
        "mean density",
        "0.35 asked for",
        "dense steps",
        "17%",
        "noise floor 41.0 dB",
        "2 seeds (0, 1)",
    ):
        assert said in text, said
    assert "Fewer than five prompts" in text
    assert "radial fell back to dense: too short (8 calls in all)" in text


def test_stand_ins_are_named_as_such(page, report):
    assert "stand-in for vbench/motion_smoothness" in page
    assert "stand-in for vbench/motion" in report.read("report.md").replace("\\", "")
    assert "(dense 0.980)" in page


def test_an_identical_clip_is_said_to_be(page, results, tmp_path):
    assert "radial, seed 0: identical at mean density" in page
    assert "1 of 4 clips identical to dense, not in the mean" in page
    assert "radial is identical to dense; noise floor 41.0 dB" in page
    everything = results.model_copy(deep=True)
    for row in everything.summary:
        row.scores["psnr"].mean = row.scores["psnr"].low = row.scores["psnr"].high = None
    write_report(tmp_path, everything)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "balanced, draft, radial: identical to dense" in page


def test_the_table_has_every_number_once(report):
    rows = list(csv.DictReader(io.StringIO(report.read("results.csv"))))
    keys = [(r["preset"], r["prompt"], r["seed"], r["frame"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    expected = sum(
        4 + len(clip.scores) + sum(map(len, clip.curves.values())) for clip in report.results.clips
    )
    assert len(rows) == expected
    infinite = [r for r in rows if r["metric"] == "psnr" and r["frame"] == "" and not r["value"]]
    assert [(r["preset"], r["seed"]) for r in infinite] == [("radial", "0")]


def test_a_video_holds_dense_sparse_and_difference_side_by_side(results, tmp_path):
    clip = results.clips[0]
    dense, sparse = (np.load(tmp_path / clip.frames[name]) for name in ("dense", "sparse"))
    video = packed_video(dense, sparse, 12.0, QUALITIES[0])
    with av.open(io.BytesIO(video), "r") as container:
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
    best = sum(len(each.video) for each in previews(tmp_path, results, most_bytes=10**9))
    for share in (0.9, 0.6):
        made = previews(tmp_path, results, most_bytes=int(share * best))
        assert len(made) == len(results.clips)
        assert sum(len(each.video) for each in made) <= share * best
        assert made[0].quality.crf > QUALITIES[0].crf
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


def test_the_page_keeps_to_its_size_however_large_the_model_is(tmp_path, results, monkeypatch):
    for clip in results.clips:
        clip.density = clip.attention_error = [[0.123] * 50 for _ in range(40)]
        clip.head_density = [[0.456] * 40 for _ in range(40)]
    bare = len(render(results, [Preview(c, b"", 64, 48, QUALITIES[0]) for c in results.clips]))
    assert bare < 100_000 * len(results.clips)
    most = bare + 60_000
    monkeypatch.setattr(write, "MOST_PAGE_BYTES", most)
    write_report(tmp_path, results)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 0.5 * most < len(page.encode()) <= most
    assert "H.264 previews, CRF 20;" not in page  # what was done to fit is said


def test_a_page_without_room_for_videos_still_has_its_numbers(tmp_path, results, monkeypatch):
    monkeypatch.setattr(write, "MOST_PAGE_BYTES", 1)
    write_report(tmp_path, results)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="stage"' not in page
    assert "noise floor 41.0 dB" in page


def test_an_identical_preset_stays_in_the_picture(results):
    row = results.summary[2]
    row.scores["psnr"].mean = row.scores["psnr"].low = row.scores["psnr"].high = None
    assert "radial, identical" in pareto(results)


def test_names_in_the_picture_are_text_and_cover_nobody(results):
    for row in results.summary:
        row.speedup, row.scores["psnr"].mean = results.summary[0].speedup, 30.0
    names = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"', pareto(results))
    assert len(set(names)) == 3
    results.summary[0].sentence = "<script>alert(3)</script>"
    assert "<script>" not in pareto(results)


def test_colours_are_tagged_as_they_were_made(results, tmp_path):
    dense = np.load(tmp_path / results.clips[0].frames["dense"])
    video = packed_video(dense, dense, 12.0, QUALITIES[0])
    with av.open(io.BytesIO(video), "r") as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (6, 1)  # smpte170m, limited


def test_absent_numbers_leave_gaps_and_no_holes_in_the_page(tmp_path, results):
    results.noise_floor, results.dense_engines = None, {}
    for row in results.summary:
        row.gain = row.scores["ssim"].low = None
    for clip in results.clips:
        clip.time = clip.dense_time = None
        clip.step_latent_error = [None, *clip.step_latent_error[1:]]
        clip.curves["ssim"] = [None] * len(clip.curves["ssim"])
        clip.head_density = []
    write_report(tmp_path, results)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert "noise floor not measured" in text
    assert not re.search(r"\b(None|nan|inf)\b", text.split("Repeat it")[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_index": 9}, "prompt_index 9 has no prompt"),
        ({"preset": "other"}, "preset other is not among"),
        ({"curves": {"psnr": [1.0]}}, "curve psnr has 1 values for 12 frames"),
        ({"density": [[1.0], [1.0, 2.0]]}, "rows of density differ"),
        ({"frames": {"dense": "../a.npy", "sparse": "b.npy"}}, "must lie in the folder"),
        ({"frames": {"dense": "a.npy"}}, "needs both dense and sparse"),
        ({"seconds": 0.0}, "greater than 0"),
    ],
)
def test_clips_that_fit_nothing_are_refused(tmp_path, results, change, message):
    values = results.model_dump(mode="json")
    values["clips"][0] |= change
    path = tmp_path / "results.json"
    path.write_text(json.dumps(values))
    with pytest.raises(BadInputError, match=message):
        read_results(path)


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


def test_a_preview_of_the_same_frames_is_the_same_bytes_on_any_number_of_cores():
    frames = np.random.default_rng(0).integers(0, 256, (3, 480, 480, 3), dtype=np.uint8)
    videos = [packed_video(frames, frames[::-1], 16, QUALITIES[0]) for _ in range(2)]
    assert videos[0] == videos[1]
    assert b" threads=1 lookahead_threads=1 " in videos[0]
    assert b" mbtree=0 " in videos[0]


def machine(load):
    return Machine(cpu="a <CPU>", cores=2, threads=4, load=load)


def test_doubts_of_the_times_stand_in_every_text(results, tmp_path):
    doubt = "the same work (all but attention) took 20.8 s dense and 63.8 s sparse"
    results.summary[2].timing = [doubt]  # of the fastest, which the headline names
    said = f"radial: {doubt}; time again on an idle machine, or with --repeats 3"
    assert said in words.warnings(results)
    assert words.headline(results).endswith(", timing in doubt")
    assert [card["doubt"] for card in words.cards(results)] == [False, False, True]
    write_report(tmp_path, results)
    assert said in (tmp_path / "index.html").read_text()
    assert doubt in (tmp_path / "report.md").read_text()
    assert read_results(tmp_path / "results.json").summary[2].timing == [doubt]


def test_the_machine_and_its_load_are_shown(results, tmp_path):
    assert words.machine(results) == ""
    results.clips[0].machine, results.clips[0].dense_machine = machine(0.5), machine(7.25)
    assert words.machine(results) == "a <CPU>, 2 cores, 4 threads, load average 0.5 to 7.2"
    write_report(tmp_path, results)
    assert (
        "a &lt;CPU&gt;, 2 cores, 4 threads, load average" in (tmp_path / "index.html").read_text()
    )
    results.clips[0].dense_machine = machine(None)
    assert words.machine(results).endswith("load average 0.5")


def test_one_run_is_called_one_run(results, tmp_path):
    row = results.summary[0]
    assert words.spread(row).startswith("quartiles 1.40 to 1.60")
    row.speedup.runs = 8
    assert words.spread(row) == "quartiles 1.40 to 1.60 of 8 runs"
    row.speedup.low = row.speedup.high = None
    row.speedup.runs = 1
    assert words.spread(row) == "one run"
    write_report(tmp_path, results)
    assert "<small>one run</small>" in (tmp_path / "index.html").read_text()
