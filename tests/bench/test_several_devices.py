"""The scripts that measure several devices: what they agree on, and heads that differ."""

import argparse
import json
import os
import socket
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.compiling import compile_blocks
from vidsparse.stats import CallKey

SCRIPTS = str(Path(__file__).parents[2] / "benchmarks")
RUN = ["whole_runs", "--tiny", "--layers", "1", "--steps", "3", "--warm", "2", "--compile"]
RANKS = 2


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return import_module


def whole_runs(monkeypatch, *arguments, **changes):
    """Run the script here, compiling without a compiler; what it uses can be another."""
    module = import_module("whole_runs")
    quick = {"compile_blocks": partial(compile_blocks, backend="eager")}
    for name, value in (quick | changes).items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", [*RUN, *arguments])
    module.main()


def test_the_best_dense_run_is_the_models_own_where_the_fastest_engine_is_refused(
    script, monkeypatch, tmp_path
):
    faster = {"torch cudnn": 1.0, "diffusers": 2.0}  # and there is no cuDNN on a CPU
    whole_runs(
        monkeypatch, "--presets", "balanced", "-o", str(tmp_path / "made.json"),
        time_dense_engines=lambda *given: faster,
    )  # fmt: skip
    stock, refused, dense, sparse = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert (stock["compiled"], stock["graphs_compiled"], stock["over_stock"]) == (False, 0, 1)
    assert refused["preset"] == dense["preset"] == "best dense"
    assert "torch-cudnn" in refused["refused"]
    assert dense["engine"] == "diffusers"
    assert dense["engine_refused"] == {"torch cudnn": refused["refused"]}
    for row in (dense, sparse):
        assert (row["compiled"], row["quantized"], row["graphs_compiled"]) == (True, None, 0)
        assert row["warm_up_graphs_compiled"] == 0  # what was refused had compiled it before
        assert row["finite"]
    assert dense["mean_density"] == 1 > sparse["mean_density"]


def work(rank, folder, port):
    sys.path.insert(0, SCRIPTS)
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank}
    os.environ |= {k: str(v) for k, v in (address | {"RANK": rank, "WORLD_SIZE": RANKS}).items()}
    module = import_module("ranks")
    ranks = module.Ranks.join()
    found = {"gathered": ranks.gathered(rank * 10), "made": ranks.attempt(lambda: rank)}
    try:
        ranks.attempt(lambda: torch.zeros(2) + torch.zeros(2 + rank))  # the second device alone
    except module.RefusedError as error:
        found["refused"] = str(error)
    joined = SimpleNamespace(join=lambda: ranks)
    ring = ["--presets", "balanced", "--by", "ring", "-o", f"{folder}/made.json"]
    with pytest.MonkeyPatch.context() as patch:
        whole_runs(patch, *ring, Ranks=joined, time_dense_engines=lambda *given: {"diffusers": 1.0})
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the script would take GPUs")
def test_what_one_device_refuses_none_does_and_all_go_on(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked, which spares two imports of everything; threads, which forks lack, are not needed
    ranks: Any = mp.start_processes(  # type: ignore[attr-defined]
        work, (str(tmp_path), port), nprocs=RANKS, join=False, start_method="fork"
    )
    end = time.monotonic() + 100
    while not ranks.join(timeout=5):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.terminate()
            pytest.fail("the processes wait for one another")
    each = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert [found["gathered"] for found in each] == [[0, 10]] * RANKS
    assert [found["made"] for found in each] == [0, 1]
    assert each[0]["refused"] == each[1]["refused"]
    assert each[0]["refused"].startswith("RuntimeError: The size of tensor a (2)")
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    found = {(row["mode"], row["preset"]): row for row in rows}
    assert set(found) == {
        (mode, preset)
        for mode in ("alone", "ring on 2")
        for preset in ("stock", "best dense", "balanced")
    }
    assert "return_lse" in found["ring on 2", "stock"]["refused"]  # torch's own, on a CPU
    for preset, graphs in (("best dense", 1), ("balanced", 0)):  # what the first compiled serves
        row = found["ring on 2", preset]
        assert row["attention_by"] == "heads"  # which no ring has to merge
        assert row["relative_error_to_alone"] < 1e-5
        assert (row["warm_up_graphs_compiled"] > 0) == graphs
        assert row["graphs_compiled"] == 0


def test_heads_of_a_trained_model_keep_their_order_and_have_one_mean(script):
    heads = script("uneven_heads")
    made = heads.spread([[0.1, 0.2], [0.3, 0.6]], 3, 5)
    flat = [density for layer in made for density in layer]
    assert [len(layer) for layer in made] == [5, 5, 5]
    assert mean(flat) == pytest.approx(0.25, abs=1e-5)
    assert [each / flat[0] for each in flat[:5]] == pytest.approx([1, 2, 3, 6, 1])
    shuffled = heads.spread([[0.1, 0.2], [0.3, 0.6]], 3, 5, is_shuffled=True)
    assert made != shuffled
    assert sorted(density for layer in shuffled for density in layer) == pytest.approx(sorted(flat))


@pytest.mark.parametrize("each", [[1.0] + [0.001] * 9, [0.9] * 20, [1.0] * 24 + [0.001] * 76])
def test_densities_are_scaled_within_what_a_density_can_be(script, each):
    scaled = script("uneven_heads").scale(each)
    assert mean(scaled) == pytest.approx(0.25, abs=1e-5)
    assert all(0.01 <= density <= 1 for density in scaled)


def test_the_densities_that_can_be_asked_for(script):
    heads, parallel = script("uneven_heads"), script("context_parallel")
    assert heads.kinds("made-up,trained") == ["made-up", "balanced", "adaspa"]
    assert heads.densities("made-up", 2, 3) == [pytest.approx([0.05, 0.25, 0.45])] * 2
    for kind in heads.kinds("trained,adaspa:shuffled"):
        layers = heads.densities(kind, 8, 40)
        assert mean(mean(layer) for layer in layers) == pytest.approx(0.25, abs=1e-5)
        assert max(map(max, layers)) > 1.5 * min(map(min, layers))
    with pytest.raises(BadInputError, match="choose from made-up, trained, balanced"):
        heads.densities("radial", 8, 40)
    args = argparse.Namespace(uneven="made-up", presets="balanced")
    rows = [case.facts() for case in parallel.cases_of(args)]
    assert rows[0] == {"preset": "dense"}
    assert [row["preset"] for row in rows[1:]] == ["balanced", "balanced, heads in turn"]
    assert [row["heads"] for row in rows[1:]] == ["made-up", "made-up"]


def test_the_densities_of_heads_are_means_over_sparse_calls(script):
    of = script("head_balance").head_densities
    calls = {
        CallKey(0, 0, "cond"): torch.ones(1),
        CallKey(1, 0, "cond"): torch.tensor([0.2, 0.4]),
        CallKey(1, 0, "uncond"): torch.tensor([0.4, 0.8]),
        CallKey(1, 1, "cond"): torch.tensor([0.5, 0.1]),
    }
    assert of(SimpleNamespace(calls=calls)) == [
        pytest.approx([0.3, 0.6]), pytest.approx([0.5, 0.1])
    ]  # fmt: skip
    with pytest.raises(BadInputError, match="layers 2"):
        of(SimpleNamespace(calls=calls | {CallKey(0, 2, "cond"): torch.ones(1)}))
