"""What diffusers does to a pipeline, asked for on the command line and said in every record."""

import functools
import json

import av
import pytest
import torch

from vidsparse.pipelines.running.stage_timing import Probe
from vidsparse.pipelines.running.video import read_video

SPARSE = "--preset draft --density 0.3 --set min_tokens=0 --set block=16 --strict"
SMALL = f"--frames 9 --height 64 --width 64 --guidance 1 --steps 3 {SPARSE}"


@pytest.fixture
def compiled(monkeypatch):
    """What happened, in order: ``torch.compile`` made code, or timing began."""
    happened = []

    def backend(graph, inputs):
        happened.append("compiled")
        return graph.forward

    def note(owner, name, word):
        method = getattr(owner, name)

        @functools.wraps(method)
        def noted(self, *args):
            happened.append(word)
            return method(self, *args)

        monkeypatch.setattr(owner, name, noted)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    note(Probe, "forget", "timed")
    torch._dynamo.reset()
    yield happened
    torch._dynamo.reset()


def test_a_video_says_how_it_was_made(cli, models, tmp_path):
    out = tmp_path / "out.mp4"
    line = f"generate circle {SMALL} --quantize int8 --cache first-block=0.1 --vae-tiling --json"
    code, said, err = cli(line, "--model", models / "wan", "-o", out)
    assert code == 0, err
    stack = ["int8 weights (torchao)", "FirstBlockCache (threshold=0.1)", "VAE in tiles"]
    assert json.loads(said)["stack"] == stack
    with av.open(str(out)) as container:
        assert json.loads(container.metadata["comment"])["stack"] == stack
    outcome = cli(f"generate circle {SMALL}", "--model", models / "wan", "-o", tmp_path / "b.mp4")
    assert "in tiles" not in outcome.out
    assert (read_video(out) != read_video(tmp_path / "b.mp4")).any()


def test_a_file_of_prompts_is_compiled_once_and_resumes(cli, models, tmp_path, compiled):
    (tmp_path / "prompts.txt").write_text("circle\nsquare\n")
    folder = ["--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "out"]
    line = ["--model", models / "wan", *SMALL.split(), *folder]
    code, said, err = cli("generate --compile", *line)
    assert code == 0, err
    assert said.count(", compiled, mean density") == 2
    assert compiled == ["compiled"]
    assert "2 of 2 videos were made before" in cli("generate --compile", *line).err
    assert "was made with other settings (stack)" in cli("generate", *line).err


def test_a_comparison_of_compiled_code_times_no_compiling(cli, models, tmp_path, compiled):
    line = f"compare circle {SMALL} --compile --noise-floor --model"
    code, said, err = cli(line, models / "wan", "-o", tmp_path)
    assert code == 0, err
    assert ", compiled" in said
    assert compiled == ["compiled", "timed", "timed"]  # one graph for all that is measured
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["stack"] == ["compiled"]
    assert found["clips"][0]["mean_density"] < 1
    assert found["noise_floor"]["psnr"] is None or found["noise_floor"]["psnr"] > 40
    for report in ("report.md", "index.html"):
        assert "in float32, compiled" in (tmp_path / report).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--compile --cache taylorseer", "--compile and --cache taylorseer cannot go together"),
        ("--offload group --device cpu", "--offload group needs a GPU"),
        ("--quantize fp8 --device cpu", "--quantize fp8 needs an NVIDIA GPU"),
        ("--cache mag", "--cache mag needs ratios measured on the model"),
        ("--lora none.safetensors", "must be a .safetensors file"),
    ],
)
def test_what_cannot_be_is_said_at_once(cli, tmp_path, options, message):
    for command in ("generate", "compare"):
        code, said, err = cli(f"{command} circle {options}", "-o", tmp_path / "out.mp4")
        assert (code, said) == (2, "")
        assert message in " ".join(err.split())
    assert not list(tmp_path.iterdir())
