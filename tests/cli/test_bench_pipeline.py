"""``vidsparse bench pipeline``: what it measures, writes, goes on with and refuses."""

import json

import pytest
import torch

from vidsparse.bench import denoising, pipeline_bench, real_size
from vidsparse.bench.caching import CachedRun, cached
from vidsparse.bench.denoising import Video
from vidsparse.cli.bench_pipeline import PipelineOptions, read_settings
from vidsparse.pipelines.running.caches import read_cache
from vidsparse.pipelines.running.checkpoints import find_checkpoint

LINE = "bench pipeline --model tiny --frames 5 --size 96x96 --steps 5 --layers 2 --set min_tokens=0"
SHORT = LINE.replace("96x96", "64x64")


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
        ("--model tiny --quantize fp4", "unknown --quantize 'fp4': choose fp8, int8, int8-dynamic"),
        (
            "--model tiny --cache first-block",
            "with random weights that is noise: give --skip-share",
        ),
        ("--model tiny --cache taylorseer --skip-share 0.5", "leave --skip-share out"),
        ("--model tiny --skip-share 0.5", "--skip-share is of a cache: give --cache too"),
        ("--model tiny --cache first-block --skip-share 1", "--skip-share 1 of 20 steps is not"),
        ("--model tiny --cache taylorseer --compile", "--compile and --cache taylorseer cannot"),
        ("--model tiny --layers 9", "--layers 9 is not possible: the model has 8 blocks"),
        ("--model tiny --preset balanced,balanced", "presets of different names"),
        (
            "--model tiny --steps 2 --set mean_density=0.35",
            "mean_density=0.35 cannot be reached in a run of 2 steps",
        ),
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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--quantize needs torchao: pip install torchao" in cli(LINE, "--quantize", "fp8").err


def test_blocks_are_compiled_where_asked(cli, monkeypatch):
    compiled = []

    def compile_blocks(self, **how):
        compiled.append(how)

    from diffusers.models.modeling_utils import ModelMixin

    monkeypatch.setattr(ModelMixin, "compile_repeated_blocks", compile_blocks)
    found = read(cli(LINE, "--preset", "draft", "--compile", "--json"))
    assert compiled == [{"dynamic": False}]
    assert [row["compiled"] for row in found["rows"]] == [False, False, True, True]


def test_a_row_with_a_cache_says_what_was_skipped_and_extends_each_step(cli, monkeypatch):
    monkeypatch.setattr(pipeline_bench, "time_dense_engines", lambda *_: {"diffusers": 1.0})
    found = read(cli(f"{SHORT} --preset balanced --cache first-block=0.1 --skip-share 0.4 --json"))
    rows = {row["name"]: row for row in found["rows"]}
    names = ["best dense", "balanced"]
    with_cache = [f"{name} + first-block=0.1 at 0.4" for name in names]
    assert list(rows)[2:] == [names[0], with_cache[0], names[1], with_cache[1]]
    for name, plain in zip(with_cache, names, strict=True):
        row = rows[name]
        assert (row["forwards"], row["forwards_skipped"], row["skipped_share"]) == (10, 4, 0.4)
        assert row["ran_per_step"] == [[2, 2], [2, 2], [1, 1], [2, 2], [1, 1]]
        assert row["skips"].startswith("told: every second of the last steps")
        assert "forwards" not in rows[plain]
        rest, times = rows["without blocks"]["step_seconds"], row["step_seconds"]
        more = [3 * (times[step] - rest[step]) for step in (0, 1, 3)]
        assert row["whole_seconds"] == pytest.approx(row["seconds"] + sum(more))
    assert found["formula"].endswith("runs as many blocks in the whole model as here")


RAN = {
    "taylorseer=cache_interval=2,disable_cache_before_step=1": [2, 0, 2, 0, 2],
    "taylorseer=use_lite_mode=true,cache_interval=3": [2, 2, 2, 0, 2],
    "mag=mag_ratios=RATIOS,threshold=5,max_skip_steps=1,retention_ratio=0.3": [2, 2, 0, 2, 0],
}


def test_a_cache_that_looks_at_the_step_alone_skips_what_it_does(tmp_path):
    (tmp_path / "ratios.json").write_text("[1.0, 1.0, 1.0, 1.0, 1.0]")
    real = real_size.build(find_checkpoint("tiny"), layers=2, device="cpu", dtype="float32")
    video = Video(frames=5, height=64, width=64, guidance=4.0)
    stock = denoising.run(real.pipe, video, 5)
    for name, ran in RAN.items():
        text = name.replace("RATIOS", str(tmp_path / "ratios.json"))
        for _ in range(2):
            with cached(real, CachedRun(text=text, cache=read_cache(text)), 5) as skips:
                denoising.run(real.pipe, video, 5, skips.before_step)
            facts = skips.facts(5)
            assert facts["ran_per_step"] == [[each, each] for each in ran]
            assert facts["forwards_skipped"] == 2 * ran.count(0)
    blocks = real.pipe.transformer.blocks.modules()
    assert all(each.forward.__func__ is type(each).forward for each in blocks)
    assert torch.equal(denoising.run(real.pipe, video, 5).latents, stock.latents)


def test_a_precision_stands_in_the_name_and_what_is_published_is_taken():
    options = PipelineOptions(model="wan2.1-14b", layers=None, preset="balanced,radial:int8")
    plain, eight = read_settings(options).presets
    assert (plain.name, plain.precision) == ("balanced", "model")
    assert (eight.name, eight.precision) == ("radial-int8", "int8")
    assert eight.schedule.dense_layers == 1
