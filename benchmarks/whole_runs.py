"""Whole denoising runs on several GPUs that share the sequence, each of them first alone.

    torchrun --nproc-per-node 2 benchmarks/whole_runs.py wan2.1-14b --layers 1 --by ulysses

What ``vidsparse bench pipeline`` measures on one device, with diffusers' own context parallelism:
stock diffusers and each preset. The time is that of the slowest device, and what they make is held
against what the same preset made alone. ``--tiny`` tries the script on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from context_parallel import share_the_sequence

from vidsparse import sparsify
from vidsparse.bench import denoising, real_size
from vidsparse.bench.denoising import Timed, Video
from vidsparse.bench.real_size import RealSize
from vidsparse.pipelines.running.checkpoints import find_checkpoint
from vidsparse.versions import versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STOCK = "stock"


def main() -> None:
    args = parse()
    devices = join()
    checkpoint = find_checkpoint("tiny" if args.tiny else args.model)
    size = checkpoint.size(*((9, 96, 96) if args.tiny else ()))
    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    real = real_size.build(checkpoint, layers=args.layers, device=DEVICE, dtype=dtype)
    video = Video(**size, guidance=checkpoint.guidance if checkpoint.takes_guidance else None)
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": versions(),
        "devices": devices, "model": args.model, "layers": real.blocks, "of": real.all_blocks,
        "steps": args.steps or checkpoint.steps, "rows": [],
    }  # fmt: skip
    alone: dict[str, torch.Tensor] = {}
    measure(real, video, args, "alone", record, alone)
    if devices > 1:
        for transformer in real.transformers():
            share_the_sequence(transformer, args, dist.get_rank(), devices)
        measure(real, video, args, f"{args.by} on {devices}", record, alone)
        dist.destroy_process_group()


def join() -> int:
    """How many devices run this; each of them is one process of torchrun."""
    if "LOCAL_RANK" not in os.environ:
        return 1
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    return dist.get_world_size()


def measure(
    real: RealSize, video: Video, args: argparse.Namespace, mode: str, record: dict[str, Any],
    alone: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    """Stock, then each preset; a short run before each builds what is built once."""
    more: dict[str, Any] = {} if DEVICE == "cuda" else {"min_tokens": 0}
    for name in (STOCK, *args.presets.split(",")):
        preset, _, precision = name.partition(":")
        precise: dict[str, Any] = more | ({"precision": precision} if precision else {})
        attached = nullcontext() if name == STOCK else sparsify(real.pipe, preset, **precise)
        with attached as session:
            try:
                together(real, video, args.warm)
            except (RuntimeError, ValueError) as error:
                if mode == "alone" or session is not None:
                    raise
                record["rows"].append({"mode": mode, "preset": name, "refused": str(error)})
                continue
            made, seconds = together(real, video, record["steps"])
            facts = {"mean_density": session.stats.mean_density} if session else {}
        row = {"mode": mode, "preset": name, "seconds": seconds, "peak_bytes": made.peak_bytes}
        add(args, record, row | facts, made.latents, alone)


def together(real: RealSize, video: Video, steps: int) -> tuple[Timed, float]:
    """A run on every device, and the seconds of the slowest."""
    if dist.is_initialized():
        dist.barrier()
    made = denoising.run(real.pipe, video, steps)
    seconds = torch.tensor(made.seconds, device=DEVICE)
    if dist.is_initialized():
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return made, float(seconds)


def add(
    args: argparse.Namespace, record: dict[str, Any], row: dict[str, Any], latents: torch.Tensor,
    alone: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    rows = record["rows"]
    rows.append(row)
    row["over_stock"] = rows[0]["seconds"] / row["seconds"]
    one = alone.setdefault(row["preset"], latents)
    row["relative_error_to_alone"] = float((latents - one).norm() / one.norm())
    if dist.is_initialized() and dist.get_rank():
        return
    print({name: value for name, value in row.items() if name != "peak_bytes"}, flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="wan2.1-14b")
    parser.add_argument(
        "--presets", default="balanced,fast", help="each as NAME or NAME:PRECISION (fast:int8)"
    )
    parser.add_argument("--by", choices=["ulysses", "ring"], default="ulysses", help="of several")
    parser.add_argument("--layers", type=int, help="of the transformer; by default all")
    parser.add_argument("--steps", type=int, help="by default the model's")
    parser.add_argument("--warm", type=int, default=6, help="steps of the run before each")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
