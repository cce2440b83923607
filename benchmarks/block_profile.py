"""Where the time of one block goes: kernels of a forward call at full sparsity, by the profiler.

    python benchmarks/block_profile.py --presets balanced:int8 --quantize fp8 -o block.json

One block of a model of real size with random weights and compiled blocks, every step sparse at one
density; all that the pipeline does beside the block is in it. ``--tiny`` tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import vidsparse
from vidsparse.bench import denoising, real_size
from vidsparse.bench.denoising import Video
from vidsparse.pipelines.running.checkpoints import find_checkpoint
from vidsparse.pipelines.running.compiling import compile_blocks
from vidsparse.pipelines.running.quantized import quantize_in_place
from vidsparse.versions import versions

ON_GPU = torch.cuda.is_available()
FULL = {"warmup": 0.0, "ramp_until": 0.0, "mean_density": None}
STEPS = 3
LEAST = 0.001  # of the time, to be listed


def main() -> None:
    args = parse()
    checkpoint = find_checkpoint("tiny" if args.tiny else args.model)
    size = checkpoint.size(*((9, 96, 96) if args.tiny else ()))
    dtype = "bfloat16" if ON_GPU else "float32"
    real = real_size.build(checkpoint, layers=1, device="cuda" if ON_GPU else "cpu", dtype=dtype)
    video = Video(**size, guidance=checkpoint.guidance if checkpoint.takes_guidance else None)
    for transformer in real.transformers():
        if args.quantize:
            quantize_in_place(transformer, args.quantize)
        compile_blocks(transformer, dynamic=False)
    rows = [profiled(real.pipe, video, name, args) for name in args.presets.split(",")]
    if args.output:
        record = {
            "command": " ".join(sys.argv),
            "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
            "versions": versions(),
            "rows": rows,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def profiled(pipe: Any, video: Video, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a forward call, in all and by kernel."""
    torch._dynamo.reset()
    preset, _, precision = name.partition(":")
    settings: dict[str, Any] = FULL | {"density": args.density}
    settings |= {"precision": precision} if precision else {}
    settings |= {"min_tokens": 0} if args.tiny else {}
    with vidsparse.sparsify(pipe, preset, **settings) as session:
        denoising.run(pipe, video, 2)
        activity = ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            denoising.run(pipe, video, STEPS)
        forwards = STEPS * (1 if video.guidance is None else 2)
        density = session.stats.mean_density
    events = sorted(profiler.key_averages(), key=lambda event: -took(event))
    total = sum(took(event) for event in events)
    kernels = [
        {"ms": took(event) / forwards, "times": event.count / forwards, "kernel": event.key[:150]}
        for event in events
        if took(event) > LEAST * total
    ]
    row = {"preset": name, "density": density, "ms": total / forwards, "kernels": kernels}
    print(f"{name}: {row['ms']:.2f} ms a forward call, density {density:.3f}")
    for kernel in kernels:
        print(f"   {kernel['ms']:8.3f} ms {kernel['times']:6.2f}x {kernel['kernel']}", flush=True)
    return row


def took(event: Any) -> float:
    """Milliseconds of its own on the device."""
    return (event.self_device_time_total if ON_GPU else event.self_cpu_time_total) / 1000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wan2.1-14b")
    parser.add_argument("--presets", default="balanced", help="each as NAME or NAME:PRECISION")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--quantize", help="fp8, int8-dynamic or int8")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
