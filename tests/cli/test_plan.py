import json

import pytest
import torch

from vidsparse import forecast
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

KEYS = (
    "tokens token_density block_density mean_density dense_steps_share grid preset parameters "
    "steps asked_mean_density"
)


def read(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_the_density_of_the_radial_mask_is_that_of_the_paper(cli):
    outcome = cli("plan --grid 21x45x80 --preset radial --set block=128 --json")
    found = read(outcome)
    assert set(KEYS.split()) <= found.keys()
    assert (found["tokens"], found["blocks"], found["steps"]) == (75_600, 591, 50)
    assert round(found["token_density"], 3) == 0.245
    assert found["token_density"] < found["block_density"] < 0.3
    assert found["block_density"] < found["mean_density"] < 1


@pytest.mark.parametrize("preset", ["draft", "balanced", "random"])
def test_methods_that_rank_blocks_keep_the_density_they_are_given(cli, preset):
    found = read(cli("plan", "--grid", "7x20x20", "--preset", preset, "--density", 0.4, "--json"))
    assert found["token_density"] == found["block_density"] == pytest.approx(0.4, abs=0.02)


def test_on_many_blocks_the_ramp_is_what_it_asks_for(monkeypatch):
    grid, steps = TokenGrid(9, 48, 48), 8
    chosen = PRESETS["draft"].override({"block": 16})
    short = forecast.forecast(chosen, grid, steps, layers=4)
    assert -(-grid.tokens // 16) > forecast.MANY
    monkeypatch.setattr(forecast, "MANY", 1 << 30)
    planned = forecast.forecast(chosen, grid, steps, layers=4)
    assert 0.5 < short.step_density[1] < 1
    assert short.step_density == pytest.approx(planned.step_density, abs=2e-3)
    assert short.step_density[-1] == planned.step_density[-1] < 0.5


@pytest.mark.parametrize("dial", [{}, {"mean_density": 0.45}])
@pytest.mark.parametrize("name", ["draft", "psa", "semantic", "re-ttention", "balanced"])
def test_what_stands_in_for_skipped_blocks_counts_as_in_a_run(name, dial):
    grid = TokenGrid(6, 16, 32)
    own = {"mean_density": 0.4} if name == "semantic" else {}  # less is out of reach
    changes = {"min_tokens": 0, "warmup": 0.05, "ramp_until": 0.5} | own | dial
    chosen = PRESETS[name].override(changes)
    engine = SparseAttention(chosen, strict=True)
    for progress in Progress.first(8).steps():
        call = Call(grid=grid, layer=0, layers=1, step=progress.at, progress=progress)
        q, k, v = torch.randn(3, 1, grid.tokens, 2, 16)
        engine(q, k, v, call, lambda q, k, v: v)
    found = forecast.forecast(chosen, grid, 8, layers=1)
    ran = list(engine.stats.step_density.values())
    assert found.step_density == pytest.approx(ran, abs=0.02)
    assert found.dense_steps_share == engine.stats.dense_steps_share
    if dial:
        assert engine.stats.mean_density == pytest.approx(0.45, abs=0.02)


def test_a_plan_says_the_mean_density_that_was_asked_for(cli):
    table = cli("plan --grid 21x30x52").out.splitlines()
    rows = {" ".join(line.split()[:-1]): line.split()[-1] for line in table if line}
    assert rows["mean density asked for"] == "0.350"
    assert rows["mean density over 50 steps"] == "0.350"
    assert read(cli("plan --grid 21x30x52 --json"))["asked_mean_density"] == 0.35
    assert "asked for" not in cli("plan --grid 21x30x52 --preset draft").out
    assert read(cli("plan --grid 21x30x52 --preset draft --json"))["asked_mean_density"] is None


def test_a_mean_density_that_is_out_of_reach_is_refused_with_the_least(cli):
    asked = "plan --grid 21x30x52 --set mean_density=0.35"
    code, out, err = cli(f"{asked} --steps 2")
    assert (code, out) == (2, "")
    assert "mean_density=0.35 cannot be reached in a run of 2 steps" in err
    assert "the least is 0.52" in err
    assert "the least is 1.00; give mean_density=1, or" in cli(f"{asked} --steps 1").err
    found = read(cli("plan --grid 21x30x52 --steps 2 --set mean_density=0.52 --json"))
    assert found["mean_density"] == pytest.approx(0.52, abs=0.005)


def test_a_preset_that_few_steps_cannot_meet_is_planned_and_what_it_costs_is_said(cli):
    found = read(cli("plan --grid 21x30x52 --preset fast --steps 4 --json"))
    assert found["asked_mean_density"] == 0.25
    assert found["mean_density"] == pytest.approx(0.36, abs=0.005)
    assert found["notes"][0].startswith("a run of 4 steps cannot have the mean density 0.25")


def test_a_density_below_what_the_mask_allows_is_noted(cli):
    outcome = cli("plan --grid 21x30x52 --preset radial --density 0.01")
    assert outcome.code == 0
    assert outcome.err.count("is the least that this mask allows") == 1


@pytest.mark.parametrize(
    ("arguments", "grid", "steps"),
    [
        ("wan2.1-14b", "21x45x80", 50),
        ("wan2.1-14b --size 832x480 --frames 41 --steps 8", "11x30x52", 8),
        ("wan2.1-1.3b", "21x30x52", 50),
        ("wan2.2-a14b", "21x45x80", 40),
        ("wan2.2-ti2v-5b", "31x22x40", 50),
        ("tiny", "7x20x20", 20),
    ],
)
def test_named_models_have_their_grid(cli, arguments, grid, steps):
    found = read(cli("plan", "--model", *arguments.split(), "--json"))
    assert (found["grid"], found["steps"]) == (grid, steps)


def test_a_model_folder_is_planned_from_its_configs(cli, other_model):
    found = read(
        cli(
            "plan",
            "--model",
            other_model,
            "--size",
            "160x160",
            "--frames",
            25,
            "--steps",
            20,
            "--json",
        )
    )
    assert found["grid"] == "7x20x20"
    assert found["mean_density"] == pytest.approx(0.35, abs=0.01)


def test_short_sequences_are_planned_dense_and_said_so(cli):
    outcome = cli("plan", "--grid", "3x12x12")
    assert outcome.code == 0
    assert "432 tokens are too few to gain" in outcome.err
    assert read(cli("plan", "--grid", "3x12x12", "--json"))["mean_density"] == 1.0


def test_dense_layers_count_when_the_model_says_how_many_there_are(cli):
    more = "--preset draft --set dense_layers=4 --json"
    plain = read(cli("plan --model tiny --preset draft --json"))["mean_density"]
    found = read(cli(f"plan --model tiny {more}"))["mean_density"]
    assert found == pytest.approx((1 + plain) / 2)
    assert "are left out" in read(cli(f"plan --grid 7x20x20 {more}"))["notes"][0]


def test_budgets_of_layers_count(cli, tmp_path):
    (tmp_path / "budgets.json").write_text('{"0": 0.9, "1": [0.8, 0.7, 0.6, 0.5]}')
    line = ["plan", "--model", "tiny", "--preset", "draft", "--json"]
    plain = read(cli(*line))["block_density"]
    found = read(cli(*line, "--set", f"budgets={tmp_path / 'budgets.json'}"))["block_density"]
    assert found == pytest.approx((6 * plain + 0.9 + 0.65) / 8, abs=0.01)


def test_budgets_of_layers_that_are_not_there_are_refused(cli, tmp_path):
    (tmp_path / "budgets.json").write_text('{"8": 0.9}')
    budgets = ["--set", f"budgets={tmp_path / 'budgets.json'}", "--density", "0.25"]
    code, out, err = cli("plan", "--model", "tiny", *budgets)
    assert (code, out) == (2, "")
    assert "names layer '8', and there are 8 layers: their numbers are 0 to 7" in err
    assert "depends on how many layers there are" in cli("plan", "--grid", "7x20x20", *budgets).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --grid"),
        ("--grid 7x20x20 --model tiny", "give --grid"),
        ("--grid 7x20", "cannot read the grid"),
        ("--grid 7x20x20 --frames 9", "belong to --model"),
        ("--grid 7x20x20 --frames 0", "belong to --model"),
        ("--grid 1x1x100000000", "at most 10,000,000 tokens can be planned, got 100,000,000"),
        ("--grid 1x1x" + "9" * 5000, "cannot read the grid"),
        ("--grid ٣x20x20", "cannot read the grid"),
        ("--grid 7x20x20 --steps " + "9" * 20, "steps must be at most 10,000, got 9999999999999"),
        ("--model tiny --size 1600000x1600000", "height must be at most 65,536, got 1600000"),
        ("--model tiny --size " + "9" * 5000 + "x160", "cannot read the size"),
        ("--model tiny --frames 99999999999999999997", "frames must be at most 100,000"),
        ("--grid 7x20x20 --steps 0", "steps must be at least 1"),
        ("--model tiny --size 170x160", "width 170 is not possible"),
        ("--model tiny --size 160", "cannot read the size"),
        ("--model wan3", "there is no model folder wan3"),
        ("--model some/model", "are not on this machine"),
    ],
)
def test_what_cannot_be_planned_is_refused(cli, arguments, message):
    code, out, err = cli("plan", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err


def test_the_time_of_a_run_is_predicted(cli):
    found = read(cli("plan --model wan2.1-14b --json"))["time"]
    assert found["gpu"] == "NVIDIA H200"
    assert found["measured"]
    assert 0.6 < found["attention_share"] < 0.75
    assert found["gain"] == pytest.approx(found["dense_seconds"] / found["sparse_seconds"])
    assert 1.6 < found["gain"] < 1.9
    compiled = read(cli("plan --model wan2.1-14b --compiled --json"))["time"]
    assert compiled["dense_seconds"] < found["dense_seconds"]
    assert compiled["gain"] > found["gain"]


def test_other_gpus_are_estimates_and_small_runs_gain_nothing(cli):
    outcome = cli("plan --model wan2.1-1.3b --gpu rtx4090")
    assert outcome.code == 0
    assert "an estimate from the published peak of the NVIDIA RTX 4090" in outcome.err
    assert "1.3b" not in outcome.err
    small = cli("plan --model tiny")
    assert "is slower than dense here: planning outweighs it" in small.err


@pytest.mark.parametrize(
    ("gpu", "preset", "is_said"),
    [
        ("a100", "semantic", True),
        ("a100", "balanced", False),
        ("h200", "semantic", False),
        ("h100", "quality", False),
    ],
)
def test_what_was_timed_of_another_kernel_is_said(cli, gpu, preset, is_said):
    said = cli(f"plan --model wan2.1-14b --gpu {gpu} --preset {preset}").err
    assert ("clusters run on the portable kernel on the NVIDIA" in said) == is_said


def test_a_grid_has_no_time(cli):
    assert "time" not in read(cli("plan --grid 21x45x80 --json"))
    outcome = cli("plan --grid 21x45x80 --gpu h200")
    assert outcome.code == 2
    assert "need --model" in outcome.err


def test_eight_bits_are_predicted(cli):
    floats = read(cli("plan --model wan2.1-14b --steps 8 --json"))
    eight = read(cli("plan --model wan2.1-14b --steps 8 --precision int8 --json"))
    assert eight["time"]["sparse_seconds"] < floats["time"]["sparse_seconds"]


def test_weights_in_fp8_are_predicted_beside_stock_and_dense_and_take_half(cli):
    line = "plan --model wan2.1-14b --compiled --precision int8 --preset fast --steps 20 --json"
    floats, eight = read(cli(line)), read(cli(f"{line} --quantize fp8"))
    before, time = floats["time"], eight["time"]
    assert (before["quantized"], time["quantized"]) == (None, "fp8")
    assert time["stock_seconds"] == before["stock_seconds"] > before["dense_seconds"]
    assert time["dense_seconds"] < before["dense_seconds"]
    assert time["flash_attn_4_seconds"] < time["dense_seconds"]
    assert time["sparse_seconds"] < before["sparse_seconds"]
    assert 3.0 < time["over_stock"] < 3.6  # 3.33 measured
    assert 2.6 < time["gain"] < 3.0  # 2.79 measured
    assert any("with FP8 weights was one model alone" in note for note in eight["notes"])
    assert any("in 16 bits, weights of linear layers in FP8" in note for note in eight["notes"])
    half = eight["memory"]["weights"] / floats["memory"]["weights"]
    assert 0.5 < half < 0.51
    assert eight["memory"]["activations"] == floats["memory"]["activations"]


def test_the_table_names_the_dense_runs(cli):
    rows = cli("plan --model wan2.1-14b --steps 8 --compiled --quantize fp8").out
    for words in ("stock run on", "compiled, fp8 weights", "run by flash-attn-4", "x stock)"):
        assert words in rows
    assert "stock" not in cli("plan --model wan2.1-14b --steps 8").out


def test_all_presets_are_predicted_with_weights_in_fp8(cli):
    line = "plan --model tiny --compiled --quantize fp8"
    alone = read(cli(f"{line} --preset draft --json"))["time"]
    found = read(cli(f"{line} --all --json"))
    row = next(row for row in found["presets"] if row["preset"] == "draft")
    assert (row["seconds"], row["over_stock"]) == (alone["sparse_seconds"], alone["over_stock"])
    assert found["stock_seconds"] == alone["stock_seconds"] > found["dense_seconds"]
    names = [row.split()[0] for row in cli(f"{line} --all").out.splitlines() if row[:1].strip()]
    assert names[1:4] == ["stock", "dense", "flash-attn-4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--grid 7x20x20 --quantize fp8", "--quantize need --model"),
        ("--model tiny --quantize fp4", "unknown --quantize 'fp4': choose fp8, int8"),
        ("--model tiny --quantize fp8", "is predicted with --compiled alone"),
        ("--model tiny --quantize fp8 --compiled --gpu a100", "A100 80 GB has 8.0"),
        ("--model tiny --quantize int8 --compiled --all", "int8 take was not measured"),
    ],
)
def test_weights_of_which_nothing_was_measured_are_refused(cli, arguments, message):
    code, out, err = cli("plan", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_of_unknown_width_is_planned_without_a_time(cli, monkeypatch):
    def unknown(checkpoint, grid):
        raise BadInputError("nobody says how wide it is")

    monkeypatch.setattr("vidsparse.pipelines.running.shapes.shapes_of", unknown)
    found = read(cli("plan --model tiny --json"))
    assert "time" not in found
    assert found["notes"][-1] == "nobody says how wide it is"
    assert "nobody says" in cli("plan --model tiny --gpu h200").err


def test_all_presets_are_shown_to_choose_from(cli):
    found = read(cli("plan --model tiny --all --json"))
    rows = {row["preset"]: row for row in found["presets"]}
    assert rows.keys() >= PRESETS.keys() - {"mine"}
    alone = read(cli("plan --model tiny --preset draft --json"))
    assert rows["draft"]["mean_density"] == alone["mean_density"]
    assert rows["draft"]["seconds"] == alone["time"]["sparse_seconds"]
    assert found["dense_seconds"] == alone["time"]["dense_seconds"]
    seconds = [row["seconds"] for row in found["presets"] if row["seconds"] is not None]
    assert seconds == sorted(seconds)
    assert rows["svg2"]["seconds"] is None
    assert any("svg2" in note and "depends on what they see" in note for note in found["notes"])
    assert any("at 2,800 tokens this model gains nothing" in note for note in found["notes"])


def test_a_preset_that_a_session_would_refuse_has_no_time_and_does_not_lead_the_list(cli):
    line = "plan --model wan2.1-14b --size 1280x720 --frames 81 --gpu h200 --all --json"
    found = read(cli(line))
    seconds = {each["preset"]: each["seconds"] for each in found["presets"]}
    assert seconds["re-ttention"] is None
    assert seconds["balanced"] > 0
    assert found["presets"][0]["seconds"] == min(each for each in seconds.values() if each)
    (said,) = [note for note in found["notes"] if note.startswith("re-ttention: ")]
    assert "would keep 31.2 GB in host memory" in said


def test_all_of_a_grid_has_densities_and_no_times(cli):
    outcome = cli("plan --grid 7x20x20 --all")
    assert outcome.code == 0
    assert "balanced" in outcome.out
    assert "a run" not in outcome.out.splitlines()[0]


def test_all_and_one_preset_do_not_go_together(cli):
    assert "--all plans every preset as it is" in cli("plan --model tiny --all --density 0.3").err


def test_the_memory_of_a_run_is_said(cli):
    found = read(cli("plan --model wan2.1-1.3b --json"))
    memory = found["memory"]
    assert memory["weights"] == pytest.approx(2 * 1.42e9, rel=0.02)
    assert memory["total"] == memory["weights"] + memory["activations"] + memory["kept"]
    assert any(note.startswith("memory is that of the transformer") for note in found["notes"])
    assert read(cli("plan --model wan2.2-a14b --json"))["memory"]["weights"] > 4 * 13e9


def test_a_supported_model_without_a_name_is_told_apart_from_a_slip(cli):
    assert "(Allegro is supported, but has no name here)" in cli("plan --model allegro").err
    assert "is supported" not in cli("plan --model wan3").err


def test_what_the_rest_of_the_stack_is_worth_is_said_where_nobody_asked(cli):
    line = "plan --model wan2.1-14b --json"
    said = [note for note in read(cli(line))["notes"] if note.startswith("with --compile ")]
    compiled = read(cli(f"{line} --compiled"))
    eight = read(cli(f"{line} --compiled --quantize fp8 --precision int8"))
    [sentence] = said
    for each in (compiled, eight):
        assert f"({each['time']['over_stock']:.2f}x)" in sentence
        assert not [note for note in each["notes"] if note.startswith("with --compile ")]
    assert "--quantize fp8 --precision int8 besides" in sentence
    clusters = "--preset quality --gpu rtx4090"
    for more in (clusters, "--gpu a100"):  # clusters on no Hopper, and a GPU without FP8
        [sentence] = [n for n in read(cli(f"{line} {more}"))["notes"] if n.startswith("with --com")]
        assert "besides" not in sentence
    refused = cli(f"{line} {clusters} --precision int8")
    assert refused.code == 2
    assert "clusters run in eight bits on Hopper GPUs alone" in refused.err
    short = read(cli("plan --model flux.1-dev --json"))["notes"]
    assert not [note for note in short if note.startswith("with --compile ")]


def test_a_rung_that_is_nearer_to_dense_in_the_same_time_is_said(cli):
    def said(line):
        return [n for n in read(cli(f"plan --json --model {line}"))["notes"] if "nearer" in n]

    [sentence] = said("wan2.1-14b")
    gain = read(cli("plan --json --model wan2.1-14b --preset semantic"))["time"]["gain"]
    assert sentence.startswith("semantic takes ")
    assert f"({gain:.2f}x) and is nearer to dense: 33.8 dB PSNR for 28.2" in sentence
    for more in ("--preset fast", "--density 0.2", "--gpu rtx4090", "--size 640x480"):
        assert not said(f"wan2.1-14b {more}"), more
    assert not said("hunyuanvideo")  # text among its tokens
