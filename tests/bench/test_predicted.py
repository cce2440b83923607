"""What a record of ``bench pipeline`` says ``plan`` predicts, beside what was measured."""

import json
from pathlib import Path

import pytest

from vidsparse.bench import pipeline_record
from vidsparse.bench.pipeline_record import Record
from vidsparse.cli.bench_pipeline import PipelineOptions, read_settings
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def told(monkeypatch, name, presets, **changes):
    """The rows of a record as they would be told on the GPU that they were measured on."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    measured = found["settings"]
    model = next(name for name, known in CHECKPOINTS.sources.items() if known == measured["model"])
    options = PipelineOptions(
        model=model,
        size=f"{measured['width']}x{measured['height']}",
        layers=measured["layers"],
        steps=measured["steps"],
        preset=presets,
        device="cpu",
        set=["min_tokens=1000"],  # as they ran: it is no longer what nobody says
    )
    settings = read_settings(options)
    monkeypatch.setattr(pipeline_record, "_device", lambda _: found["device"])
    record = Record(settings, "bench pipeline", None)
    for row in found["rows"]:
        row.pop("predicted_seconds", None)
        record.add(row | (changes if row["quantized"] else {}))
    return {row["name"]: row for row in record.told()}


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("pipeline_flux_4096_h200", "balanced"),
        ("pipeline_wan14b_compiled_h200", "balanced,fast"),
        ("pipeline_wan14b_fp8_h200", "balanced:int8,fast:int8"),
        ("pipeline_wan1.3b_h200", "balanced,fast"),
        ("pipeline_hunyuanvideo_h200", "balanced,fast"),
        ("pipeline_qwen_2048_h200", "balanced,fast"),
        ("pipeline_ltx_video_h200", "balanced,fast"),
        ("pipeline_flux_2048_h200", "balanced,fast"),
        ("pipeline_ltx2_h200", "balanced,fast"),
    ],
)
def test_rows_are_predicted_within_ten_percent(monkeypatch, name, presets):
    rows = told(monkeypatch, name, presets)
    unknown = {row["name"] for row in rows.values() if "predicted_seconds" not in row}
    cudnn = rows["best dense"]["engine"] == "torch cudnn"
    assert unknown == {"without blocks"} | ({"best dense"} if cudnn else set())
    for row in rows.values():
        if row["name"] not in unknown:
            assert row["predicted_seconds"] == pytest.approx(row["whole_seconds"], rel=0.10)


def test_nothing_is_predicted_of_what_was_not_measured(monkeypatch):
    name, presets = "pipeline_wan14b_fp8_h200", "balanced:int8,fast:int8"
    rows = told(monkeypatch, name, presets, quantized="int8")
    assert {name for name, row in rows.items() if "predicted_seconds" in row} == {"stock"}
    rows = told(monkeypatch, name, presets, engine="torch flash")
    assert "predicted_seconds" not in rows["best dense"]
