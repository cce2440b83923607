"""What the command line says of a preset is what runs on the model, published settings included."""

import dataclasses
import json

import pytest
import torch

from vidsparse.comparison.measure import sparsity
from vidsparse.pipelines import models, published
from vidsparse.pipelines.model import Release
from vidsparse.stats import CallKey, Stats

ROW = published.Published(
    preset="draft",
    releases=("Shipped-8L",),
    settings={"density": 0.4, "dense_layers": 2, "warmup": 0.5, "ramp_until": 0.5},
    source="a paper",
)
SAID = (
    "draft on Shipped-8L runs with density=0.4, dense_layers=2, warmup=0.5, ramp_until=0.5, as its "
    "authors publish (a paper)"
)


def publish(monkeypatch, row=ROW):
    monkeypatch.setattr(published, "PUBLISHED", (row,))


@pytest.fixture
def model(other_model, monkeypatch):
    """The shipped pipeline in a folder, as a model of which settings are published."""
    kind = "WanTransformer3DModel"
    release = Release(name="Shipped-8L", config={"num_layers": 8})
    row = dataclasses.replace(models.MODELS[kind], releases=(release,))
    monkeypatch.setitem(models.MODELS, kind, row)
    publish(monkeypatch)
    return other_model


def read(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_plan_counts_and_says_them(cli, model):
    line = ["plan", "--model", model, "--size", "160x160", "--frames", 25, "--preset", "draft"]
    line += ["--set", "min_tokens=0"]  # too few for a GPU to gain
    found = read(cli(*line, "--steps", 4, "--json"))
    assert found["parameters"].items() >= ROW.settings.items()
    assert found["notes"][0] == SAID
    assert found["dense_steps_share"] == 0.5
    assert found["mean_density"] == pytest.approx((0.5 + 0.5 * (2 + 6 * 0.4) / 8), abs=0.02)
    told = read(cli(*line, "--steps", 4, "--density", 0.2, "--json"))
    assert told["parameters"]["density"] == 0.2
    assert told["parameters"]["dense_layers"] == 2
    assert "density" not in told["notes"][0]
    assert SAID in " ".join(cli(*line).err.split())


def test_a_grid_is_of_no_model(cli, model):
    found = read(cli("plan --grid 7x20x20 --preset draft --json"))
    assert found["parameters"]["dense_layers"] == 0
    assert not [note for note in found["notes"] if "publish" in note]


def test_presets_list_them(cli, monkeypatch):
    publish(monkeypatch)
    found = read(cli("presets draft --json"))
    assert found["published"] == [
        {"model": "Shipped-8L", "settings": dict(ROW.settings), "source": "a paper"}
    ]
    assert read(cli("presets svg --json"))["published"] == []
    seen = cli("presets draft").out
    assert "published settings" in seen
    assert "Shipped-8L" in seen
    assert "published" not in cli("presets svg").out


def test_presets_print_brackets(cli):
    assert "in [warmup, 1]" in " ".join(cli("presets draft").out.split())


def test_generate_runs_and_says_them(cli, model, small, tmp_path):
    line = ["generate", "a red circle", "--model", model, *small, "--preset", "draft", "--json"]
    facts = read(cli(*line, "-o", tmp_path / "a.npy"))
    assert facts["notes"].count(SAID) == 1
    assert facts["dense_steps_share"] == 0.5


def test_what_generate_finds_made_depends_on_them(cli, model, small, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    line = ["generate", "--prompts", tmp_path / "prompts.txt", "--model", model, *small]
    line += ["--preset", "draft", "-o", tmp_path / "videos"]
    assert cli(*line).code == 0
    assert "1 of 1 videos were made before" in cli(*line).err
    publish(monkeypatch, dataclasses.replace(ROW, settings={**ROW.settings, "dense_layers": 3}))
    refused = cli(*line)
    assert refused.code == 2
    assert "was made with other settings (preset)" in " ".join(refused.err.split())


def test_compare_records_and_reports_them(cli, model, small, tmp_path, monkeypatch):
    out = tmp_path / "compared"
    line = ["compare", "a red circle", "--model", model, *small, "--preset", "draft", "-o", out]
    record = read(cli(*line, "--json"))
    assert record["presets"][0]["parameters"].items() >= ROW.settings.items()
    assert "first 2 layers always dense" in record["schedule_note"]
    assert SAID in record["clips"][0]["notes"]
    assert record["clips"][0]["dense_steps_share"] == 0.5
    for name in ("index.html", "report.md"):
        report = (out / name).read_text().replace("\\_", "_")
        assert "first 2 layers always dense" in report
        assert SAID in report

    def made_again():
        outcome = cli(*line)
        assert outcome.code == 0
        assert SAID.partition(" runs")[0] in " ".join((outcome.out + outcome.err).split())
        return "made again, since these changed: preset" in outcome.err

    assert not made_again()
    publish(monkeypatch, dataclasses.replace(ROW, settings={**ROW.settings, "dense_layers": 3}))
    assert made_again()


def test_what_a_user_tells_is_what_is_recorded(cli, model, small, tmp_path):
    told = [*small, "--density", "0.3", "--set", "dense_layers=0", "--set", "warmup=0"]
    line = ["compare", "a red circle", "--model", model, *told, "--preset", "draft"]
    record = read(cli(*line, "-o", tmp_path / "compared", "--json"))
    assert record["presets"][0]["parameters"]["density"] == 0.3
    assert record["clips"][0]["notes"] == []


def test_inspect_draws_what_runs(cli, model, small, tmp_path):
    line = ["inspect", "a red circle", "--model", model, *small, "--preset", "draft"]
    refused = cli(*line, "--layers", "0,1", "-o", tmp_path / "drawn")
    assert refused.code == 2
    assert "sparse from layer 2 on" in " ".join(refused.err.split())
    record = read(cli(*line, "--layers", "2", "-o", tmp_path / "drawn", "--json"))
    assert record["parameters"].items() >= ROW.settings.items()


def test_always_dense_layers_are_a_row_of_ones():
    stats = Stats()
    for layer, density in enumerate([torch.ones(1), torch.tensor([0.2, 0.4]), torch.tensor([0.5])]):
        stats.record(CallKey(0, layer, "cond"), None, density)
    assert sparsity(stats)["head_density"] == [
        [1.0, 1.0], pytest.approx([0.2, 0.4]), [0.5, 0.5]
    ]  # fmt: skip
