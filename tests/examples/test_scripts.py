"""The example scripts run, on the shipped pipeline or a tiny random one."""

import os
import runpy
import socket
import sys
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.video import read_video

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROMPT = "a red circle"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def run_as_torchrun_does(rank, folder, port, script, *arguments):
    """One of two processes, which has what torchrun tells it."""
    os.chdir(folder)
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False  # no GPU can be used in a fork
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    os.environ |= {k: str(v) for k, v in (address | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    sys.argv = [str(script), *arguments]
    with Path(f"{rank}.txt").open("w") as sys.stdout:
        runpy.run_path(str(script), run_name="__main__")


def test_every_script_is_listed_and_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"}
    listed = (EXAMPLES / "README.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in scripts if f"({name}.py)" not in listed] == []
    assert [name for name in scripts if f'"{name}' not in tests] == []


def test_wrap_a_pipeline_writes_its_video(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = example("wrap_a_pipeline")
    script["main"](frames=5, size=64, steps=2)
    assert read_video("circle.mp4").shape == (5, 64, 64, 3)
    assert "balanced" in capsys.readouterr().out


def test_image_model_draws_with_the_shipped_pipeline():
    size = {"num_frames": 1, "height": 64, "width": 96, "num_inference_steps": 3}
    image, summary = example("image_model")["draw"](load_pipeline(), PROMPT, min_tokens=0, **size)
    assert image.shape == (1, 64, 96, 3)
    assert image.dtype == np.uint8
    assert "nothing fell back to dense" in summary


def test_image_model_draws_with_an_image_model():
    builders = runpy.run_path(str(ROOT / "tests" / "pipelines" / "tiny_pipelines.py"))["BUILDERS"]
    size = {"height": 64, "width": 64, "num_inference_steps": 4}
    image, summary = example("image_model")["draw"](
        builders["flux"](), PROMPT, min_tokens=0, **size
    )
    assert image.shape == (1, 64, 64, 3)
    assert "nothing fell back to dense" in summary


def test_compile_and_offload_makes_what_the_plain_pipeline_makes():
    torch._dynamo.reset()
    script = example("compile_and_offload")
    size = {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 5}
    size |= {"guidance_scale": 1.0}
    plain, _ = script["generate"](load_pipeline(), PROMPT, **size)
    pipe = load_pipeline()
    script["set_up"](pipe, "cpu", backend="aot_eager")
    for block in pipe.transformer.blocks:  # the hook that brings weights is around compiled code
        assert block._compiled_call_impl is None
        inner = block._diffusers_hook._fn_refs[0].forward
        assert hasattr(inner, "_torchdynamo_orig_callable")
    frames, summary = script["generate"](pipe, PROMPT, **size)
    assert "nothing fell back to dense" in summary
    np.testing.assert_allclose(frames, plain, atol=2e-3)
    torch._dynamo.reset()


def test_two_gpus_runs_on_two_processes_of_a_cpu(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = EXAMPLES / "two_gpus.py", "--frames", "5", "--size", "64", "--steps", "4"
    mp.start_processes(  # type: ignore[attr-defined]
        run_as_torchrun_does, (tmp_path, port, *command), nprocs=2, start_method="fork"
    )  # forked, which spares two imports of everything
    out = (tmp_path / "0.txt").read_text()
    assert read_video(tmp_path / "shared.mp4").shape == (5, 64, 64, 3)
    assert "nothing fell back to dense" in out
    assert "busier device" in out


def test_compare_in_python_reports_both_presets(tmp_path):
    video = {"frames": 5, "height": 64, "width": 64, "steps": 3, "guidance": 1.0, "min_tokens": 0}
    found = example("compare_in_python")["compare"](load_pipeline(), tmp_path / "out", **video)
    assert set(found) == {"balanced", "random"}
    assert all(speed > 0 and psnr > 0 for speed, psnr in found.values())
    assert (tmp_path / "out" / "index.html").exists()
