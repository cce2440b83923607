"""Predicted times against those that were measured, which lie in benchmarks/results."""

import json
from pathlib import Path

import pytest

from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.run_time import GPUS, Shapes, call_cost, dense_step, find_gpu, sparse_run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
H200 = GPUS["h200"]


def wan(tokens, layers, heads, ffn):
    width = 128 * heads
    linear = layers * (6 * width**2 + 2 * width * ffn)
    return Shapes(tokens=tokens, layers=layers, heads=heads, head_dim=128, linear=linear)


def square(tokens, layers, heads, head_dim, products, samples=1):
    linear = layers * products * (heads * head_dim) ** 2
    return Shapes(
        tokens=tokens, layers=layers, heads=heads, head_dim=head_dim, linear=linear,
        samples=samples,
    )  # fmt: skip


FORWARD = {  # of real_sizes.py
    "hunyuan-720p": square(119_056, 12, 24, 128, 12),
    "cogvideox-5b": square(17_776, 42, 48, 64, 12, samples=2),
    "ltx-2b": square(17_556, 28, 32, 64, 14),
    "flux-4k": square(66_048, 57, 24, 128, 12),
}
RUNS = {
    "whole_run_wan-14b_h200": wan(75_600, 1, 40, 13_824),
    "whole_run_wan-2.2-a14b_h200": wan(75_600, 1, 40, 13_824),
    "whole_run_wan-1.3b_h200": wan(32_760, 6, 12, 8_960),
    "whole_run_wan-14b_int8_h200": wan(75_600, 1, 40, 13_824),
}


def measured(file, model):
    """Milliseconds of a dense forward call without padding."""
    runs = json.loads((RESULTS / f"{file}.json").read_text())["runs"]
    return next(
        row["ms"]
        for run in runs
        for row in run["rows"]
        if row["model"] == model and row["preset"] == "dense in a session"
    )


@pytest.mark.parametrize("model", FORWARD)
@pytest.mark.parametrize("compiled", [False, True])
def test_dense_forward_calls(model, compiled):
    ms = measured("real_sizes_compiled_h200" if compiled else "real_sizes_h200", model)
    predicted = 1000 * dense_step(FORWARD[model], H200, compiled=compiled).seconds
    assert predicted == pytest.approx(ms, rel=0.10)


@pytest.mark.parametrize("file", RUNS)
def test_whole_runs_dense_and_sparse(file):
    record, shapes = json.loads((RESULTS / f"{file}.json").read_text()), RUNS[file]
    run, rest = Progress.first(record["steps"]), record["seconds_without_layers"]
    for row in record["rows"]:
        dense = dense_step(shapes, H200, compiled=row["mode"] == "compiled")
        seconds = record["steps"] * dense.seconds
        if row["preset"] != "stock":
            name, _, precision = row["preset"].partition(":")
            preset = PRESETS[name].override({"precision": precision} if precision else {})
            density = full_density(preset, run)
            each = [1 - way * (1 - density) for way in preset.schedule.ways(run)]
            seconds = sparse_run(dense, shapes, call_cost(preset, 128), each)
        assert seconds == pytest.approx(row["seconds"] - rest, rel=0.10), row["preset"]


def test_eight_bits_and_fewer_pairs_are_faster_and_a_slower_gpu_is_slower():
    shapes = RUNS["whole_run_wan-14b_h200"]
    dense = dense_step(shapes, H200)
    balanced = PRESETS["balanced"]
    floats = sparse_run(dense, shapes, call_cost(balanced, 128), [1.0, 0.3])
    eight = sparse_run(
        dense, shapes, call_cost(balanced.override({"precision": "int8"}), 128), [1.0, 0.3]
    )
    assert eight < floats < 2 * dense.seconds
    assert dense_step(shapes, GPUS["rtx4090"]).seconds > 3 * dense.seconds


def test_an_unknown_gpu_is_refused_with_the_near_ones():
    with pytest.raises(BadInputError, match="unknown GPU 'h20': did you mean h200"):
        find_gpu("h20")
