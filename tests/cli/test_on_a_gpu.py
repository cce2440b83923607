"""A comparison of the shipped model on a CPU says what a GPU would gain for a large one."""

import json
from types import SimpleNamespace

from vidsparse.cli import run
from vidsparse.cli.on_a_gpu import on_a_gpu
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.presets import find_preset


def test_the_line_says_what_plan_predicts(capsys):
    results = SimpleNamespace(gpu=None, model=str(TINY))
    (line,) = on_a_gpu(results, [find_preset("balanced"), find_preset("turbo")])  # type: ignore[arg-type]
    for preset in ("balanced", "turbo"):
        capsys.readouterr()
        assert run(["plan", "--model", "wan2.1-14b", "--preset", preset, "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert f" with {preset} ({planned['time']['gain']:.2f}x)" in line
        assert f"({planned['tokens']:,} tokens)" in line


def test_of_what_depends_on_the_data_nothing_is_predicted():
    results = SimpleNamespace(gpu=None, model=str(TINY))
    assert on_a_gpu(results, [find_preset("lite")]) == []  # type: ignore[arg-type]
    (line,) = on_a_gpu(results, [find_preset("lite"), find_preset("balanced")])  # type: ignore[arg-type]
    assert " with balanced (" in line
    assert "lite" not in line


def test_on_a_gpu_or_with_a_model_of_ones_own_nothing_is_said():
    for results in (
        SimpleNamespace(gpu="NVIDIA H200", model=str(TINY)),
        SimpleNamespace(gpu=None, model="/models/wan"),
    ):
        assert on_a_gpu(results, [find_preset("balanced")]) == []  # type: ignore[arg-type]
