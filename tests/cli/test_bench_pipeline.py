"""``vidsparse bench pipeline``: what it measures, writes, goes on with and refuses."""

import json

import pytest

from vidsparse.bench import pipeline_bench
from vidsparse.cli.bench_pipeline import PipelineOptions, read_settings

LINE = "bench pipeline --model tiny --frames 5 --size 96x96 --steps 5 --layers 2 --set min_tokens=0"


def read(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_runs_are_timed_step_by_step_extended_and_gone_on_with(cli, tmp_path):
    path = tmp_path / "record.json"
    found = read(cli(LINE, "--preset", "balanced", "--json", "-o", path))
    assert json.loads(path.read_text()) == found
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["stock", "without blocks", "best dense", "balanced"]
    assert all(len(row["step_seconds"]) == 5 for row in rows.values())
    rest, stock = rows["without blocks"]["seconds"], rows["stock"]["seconds"]
    assert rows["stock"]["whole_seconds"] == pytest.approx(rest + 4 * (stock - rest))
    assert rows["best dense"]["engine"] in rows["best dense"]["engine_ms"]
    whole = rows["balanced"]["whole_seconds"]
    assert rows["balanced"]["over_stock"] == rows["stock"]["whole_seconds"] / whole
    assert rows["balanced"]["mean_density"] == pytest.approx(0.35, abs=0.03)
    assert not rows["balanced"]["fallbacks"]
    assert (found["settings"]["layers"], found["settings"]["of"]) == (2, 8)
    assert found["formula"].startswith("whole_seconds = ")
    outcome = cli(LINE, "--preset", "balanced,draft", "-o", path)
    assert "measured before: stock, without blocks, best dense, balanced" in outcome.err
    again = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert again["balanced"] == rows["balanced"]
    assert "draft" in again
    assert "draft" in outcome.out


def test_a_record_of_something_else_stays(cli, tmp_path, monkeypatch):
    path = tmp_path / "record.json"

    def one_row(settings, done, report):
        row = {"name": "stock", "seconds": 2.0, "step_seconds": [0.5, 0.5]}
        report(row | {"quantized": None, "compiled": False})

    monkeypatch.setattr(pipeline_bench, "run", one_row)
    assert cli(LINE, "-o", path).code == 0
    code, _, err = cli(LINE, "--steps", "6", "-o", path)
    assert code == 2
    assert "was measured with another steps (5, now 6): give --overwrite" in err
    path.write_text("{}")
    assert "is no record of this" in cli(LINE, "-o", path).err
    assert cli(LINE, "--overwrite", "-o", path).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model tiny --density 0.5", "--density belongs to `vidsparse bench kernels`"),
        ("", "give --model"),
        ("--model tiny --quantize fp4", "--quantize takes fp8 or int8, got 'fp4'"),
        ("--model tiny --layers 9", "--layers 9 is not possible: the model has 8 blocks"),
        ("--model tiny --preset balanced,balanced", "presets of different names"),
        ("--model tiny --steps 2", "mean_density=0.35 cannot be reached in a run of 2 steps"),
        (
            "--model tiny --layers 2 --preset draft --set dense_layers=1",
            "'draft' treats some layers apart (dense_layers or budgets), for which 2 of 8 cannot",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(cli, arguments, message):
    code, out, err = cli(f"bench pipeline {arguments}")
    assert (code, out) == (2, "")
    assert message in err


def test_options_of_a_pipeline_are_none_of_kernels(cli):
    assert "--layers belongs to `vidsparse bench pipeline`" in cli("bench --layers 2").err


def test_a_missing_torchao_is_said(cli, monkeypatch):
    monkeypatch.setattr("vidsparse.bench.quantized.find_spec", lambda name: None)
    assert "needs torchao, which is not installed" in cli(LINE, "--quantize", "fp8").err


def test_blocks_are_compiled_where_asked(cli, monkeypatch):
    compiled = []

    def compile_blocks(self, **how):
        compiled.append(how)

    from diffusers.models.modeling_utils import ModelMixin

    monkeypatch.setattr(ModelMixin, "compile_repeated_blocks", compile_blocks)
    found = read(cli(LINE, "--preset", "draft", "--compile", "--json"))
    assert compiled == [{"dynamic": False}]
    assert [row["compiled"] for row in found["rows"]] == [False, False, True, True]


def test_a_precision_stands_in_the_name_and_what_is_published_is_taken():
    options = PipelineOptions(model="wan2.1-14b", layers=None, preset="balanced,radial:int8")
    plain, eight = read_settings(options).presets
    assert (plain.name, plain.precision) == ("balanced", "model")
    assert (eight.name, eight.precision) == ("radial-int8", "int8")
    assert eight.schedule.dense_layers == 1
