"""``vidsparse bench``: what it measures, writes and refuses."""

import json

import pytest
import torch

from vidsparse.bench import kernel_bench
from vidsparse.cli import run


@pytest.fixture
def one_small_shape(monkeypatch):
    shape = kernel_bench._shape("small", 2, "3x5x7", 16)
    monkeypatch.setattr(kernel_bench, "CPU_SHAPES", (shape,))
    monkeypatch.setattr(kernel_bench, "GPU_SHAPES", (shape,))


@pytest.mark.usefixtures("one_small_shape")
def test_every_engine_is_checked_and_timed_beside_dense(tmp_path, capsys):
    path = tmp_path / "bench.json"
    code = run(["bench", "kernels", "--density", "0.5", "--rounds", "2", "--json", "-o", str(path)])
    assert code == 0
    shown = json.loads(capsys.readouterr().out)
    written = json.loads(path.read_text())
    assert shown == written
    assert written["command"].startswith("vidsparse bench kernels --density 0.5")
    assert {"random", "radial"} == {row["pattern"] for row in written["rows"]}
    dense = [row for row in written["rows"] if row["dense"]]
    sparse = [row for row in written["rows"] if not row["dense"]]
    assert dense
    assert sparse
    assert max(row["efficiency"] for row in dense) == 1.0
    for row in sparse:
        assert row["error"] < 1e-2
        assert (row["extra_bytes"] is None) == (not torch.cuda.is_available())
        assert 0 < row["density"] <= 1
        assert row["efficiency"] == pytest.approx(row["density"] * row["speedup"])
        assert row["speedup"] > 0  # a busy machine may time anything


@pytest.mark.usefixtures("one_small_shape")
def test_an_engine_that_fails_is_named_and_the_others_are_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    engines = ["--engine", "cpu", "--engine", "xformers", "--precision", "int8"]
    arguments = ["--density", "0.5", "--rounds", "1", "--no-radial", "-o", str(path)]
    assert run(["bench", "kernels", *engines, *arguments]) == 0
    rows = json.loads(path.read_text())["rows"]
    failed = [row for row in rows if "failed" in row]
    assert [row["engine"] for row in failed] == ["xformers", "int8"]
    assert all("cannot run this" in row["failed"] for row in failed)
    assert "cpu" in {row["engine"] for row in rows if "failed" not in row}
    assert "xformers: failed:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--engine", "warp"], "unknown engine 'warp'"),
        (["kernels", "--precision", "int4"], "--precision must be model or int8"),
        (["kernels", "--shape", "wan-99b"], "no shape 'wan-99b'"),
        (["everything"], ""),
        (["--density", "nan"], "--density must be in (0, 1], got nan"),
        (["--density", "0"], "--density must be in (0, 1], got 0"),
        (["--density", "0.5", "--density", "1.5"], "--density must be in (0, 1], got 1.5"),
        (["--q-block", "0"], "'--q-block'"),
        (["--kv-block", "-3"], "'--kv-block'"),
        (["--q-block", "99999999999999"], "'--q-block'"),
        (["--rounds", "99999999999999999999"], "'--rounds'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys):
    assert run(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_record_that_is_there_is_not_written_over(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text("{}")
    assert run(["bench", "kernels", "-o", str(path)]) == 2
    assert "bench.json exists: give --overwrite" in capsys.readouterr().err
    assert path.read_text() == "{}"
