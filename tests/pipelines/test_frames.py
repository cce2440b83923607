"""How many of our frames lie between diffusers and the kernel."""

import dataclasses
import traceback
from pathlib import Path

import torch

import vidsparse
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.pipelines.running.load import load_pipeline

OURS = Path(vidsparse.__file__).parent
MOST = 10


def test_a_call_passes_ten_of_our_frames_from_the_tap_to_the_kernel(monkeypatch, cpu_engine):
    seen = []
    cpu = ENGINES[cpu_engine]

    def spy(*args, **named):
        seen.append([frame.filename for frame in traceback.extract_stack()])
        return cpu.run(*args, **named)

    monkeypatch.setitem(ENGINES, cpu_engine, dataclasses.replace(cpu, run=spy))
    pipe = load_pipeline("tiny", device="cpu")
    with vidsparse.sparsify(pipe, "draft", min_tokens=0):
        pipe(
            "a red circle", num_frames=9, height=64, width=64, num_inference_steps=3,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        )  # fmt: skip
    frames = seen[0]
    last = max(at for at, name in enumerate(frames) if "/diffusers/" in name)
    ours = [name for name in frames[last + 1 :] if Path(name).is_relative_to(OURS)]
    assert 3 < len(ours) + 1 <= MOST  # the engine itself is the one that the spy stands for
