"""Whole denoising runs of real-size Wan transformers with random weights, in one process.

    python benchmarks/whole_runs.py wan-14b --layers 2 --compiled balanced -o wan14b.json
    torchrun --nproc-per-node 2 benchmarks/whole_runs.py wan-14b --layers 1 --by ulysses

The real ``WanPipeline`` with its scheduler and guidance, without text encoder and VAE. Stock
diffusers first, then each preset, then the same with the blocks compiled. Every layer of a model
is alike, so a few of them stand for all: the rest of a step is small. Under torchrun each device
first runs alone, then all of them share the sequence: the time is that of the slowest one, and what
they make is held against what the same preset made alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import torch.distributed as dist
from context_parallel import share_the_sequence
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

import vidsparse


class Model(NamedTuple):
    """A transformer and how it is run.

    Attributes:
        layers: Of the whole model.
        heads: Of 128 numbers each.
        ffn: Width of its feed-forward network.
        size: Frames, height and width.
        shift: Of the noise levels.
        steps: Denoising steps.
    """

    layers: int
    heads: int
    ffn: int
    size: tuple[int, int, int]
    shift: float
    steps: int


MODELS = {
    "wan-14b": Model(40, 40, 13824, (81, 720, 1280), 5.0, 50),
    "wan-1.3b": Model(30, 12, 8960, (81, 480, 832), 3.0, 50),
    "wan-2.2-a14b": Model(40, 40, 13824, (81, 720, 1280), 12.0, 40),
    "small": Model(2, 2, 64, (9, 64, 96), 3.0, 6),  # to try the script on a CPU
}


def main() -> None:
    args = parse()
    devices = join()
    model = MODELS[args.model]
    layers = args.layers or model.layers
    steps = args.steps or model.steps
    pipe, embeds = build(model, layers)
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": {
            each.__name__: each.__version__ for each in (torch, diffusers, vidsparse)
        },
        "devices": devices, "model": args.model, "layers": layers, "of": model.layers,
        "steps": steps, "rows": [],
    }  # fmt: skip
    alone: dict[str, torch.Tensor] = {}
    for mode in ("eager", "compiled")[: 1 + bool(args.compiled)]:
        if mode == "compiled":
            pipe.transformer.compile_repeated_blocks(dynamic=False)
        measure(pipe, embeds, model, steps, args, mode, record, alone)
    if devices > 1:
        share_the_sequence(pipe.transformer, args, dist.get_rank(), devices)
        measure(pipe, embeds, model, steps, args, f"{args.by} on {devices}", record, alone)
        dist.destroy_process_group()


def join() -> int:
    """How many devices run this; each of them is one process of torchrun."""
    if "LOCAL_RANK" not in os.environ:
        return 1
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    return dist.get_world_size()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(model: Model, layers: int) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        transformer = WanTransformer3DModel(
            num_layers=layers, num_attention_heads=model.heads, ffn_dim=model.ffn
        ).eval()
    torch.set_default_dtype(torch.float32)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=model.shift
    )
    left_out: Any = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    parts: Any = {"transformer": transformer, "scheduler": scheduler} | left_out
    pipe: Any = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, torch.randn(1, 512, 4096, device=DEVICE, dtype=dtype)


class Made(NamedTuple):
    """A run: its seconds on the slowest device, its latents, the memory it took at most."""

    seconds: float
    latents: torch.Tensor
    peak_bytes: int | None


def run(pipe: Any, embeds: torch.Tensor, model: Model, steps: int) -> Made:
    frames, height, width = model.size
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wait()
    start = time.perf_counter()
    latents = pipe(
        prompt_embeds=embeds, negative_prompt_embeds=-embeds,
        num_frames=frames, height=height, width=width, guidance_scale=5.0,
        num_inference_steps=steps, output_type="latent",
        generator=torch.Generator(DEVICE).manual_seed(0),
    ).frames  # fmt: skip
    wait()
    seconds = torch.tensor(time.perf_counter() - start, device=DEVICE)
    if dist.is_initialized():
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
    return Made(float(seconds), latents, peak)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def measure(
    pipe: Any, embeds: torch.Tensor, model: Model, steps: int, args: argparse.Namespace,
    mode: str, record: dict[str, Any], alone: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    """Stock, then each preset; a short run before each builds what is built once."""
    try:
        run(pipe, embeds, model, 2)
    except (RuntimeError, ValueError) as error:
        if mode in ("eager", "compiled"):
            raise
        record["rows"].append({"mode": mode, "preset": "stock", "refused": str(error)})
    else:
        add(args, record, mode, "stock", run(pipe, embeds, model, steps), {}, alone)
    if mode == "eager":
        blocks, pipe.transformer.blocks = pipe.transformer.blocks, torch.nn.ModuleList()
        record["seconds_without_layers"] = run(pipe, embeds, model, steps).seconds
        pipe.transformer.blocks = blocks
    more: dict[str, Any] = {} if DEVICE == "cuda" else {"min_tokens": 0}
    for name in (args.compiled if mode == "compiled" else args.presets).split(","):
        preset, _, precision = name.partition(":")
        precise = {"precision": precision} if precision else {}
        with vidsparse.sparsify(pipe, preset, strict=True, **precise, **more) as session:
            run(pipe, embeds, model, args.warm)
            made, stats = run(pipe, embeds, model, steps), session.stats
            add(args, record, mode, name, made, {
                "mean_density": stats.mean_density,
                "dense_steps_share": stats.dense_steps_share,
                "plan_seconds": stats.plan_seconds,
                "attention_seconds": stats.attention_seconds,
                "engines": dict(stats.engines),
                "fallbacks": dict(stats.fallbacks),
                "notes": list(stats.notes),
                "parameters": session.preset.plain_parameters(),
            }, alone)  # fmt: skip


def add(
    args: argparse.Namespace, record: dict[str, Any], mode: str, name: str, made: Made,
    facts: dict[str, Any], alone: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    rows = record["rows"]
    row = {"mode": mode, "preset": name, "seconds": made.seconds, "peak_bytes": made.peak_bytes}
    row |= facts
    rows.append(row)
    row["over_stock"] = rows[0]["seconds"] / made.seconds
    if mode == "eager":
        calls = 2 * record["steps"] * record["layers"]
        rest = record.get("seconds_without_layers", 0.0)
        row["ms_a_layer"] = 1000 * (made.seconds - rest) / calls
    one = alone.setdefault(name, made.latents)
    row["relative_error_to_alone"] = float((made.latents - one).norm() / one.norm())
    density = f", density {facts['mean_density']:.3f}" if facts else ""
    planning = f", planning {facts['plan_seconds']:.2f} s" if facts else ""
    if dist.is_initialized() and dist.get_rank():
        return
    print(
        f"{record['model']} {mode:12s} {name:10s} {made.seconds:7.2f} s  "
        f"{row['over_stock']:.2f}x stock{density}{planning}, "
        f"{row['relative_error_to_alone']:.1e} from alone",
        flush=True,
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument(
        "--presets", default="balanced,fast", help="each as NAME or NAME:PRECISION (fast:int8)"
    )
    parser.add_argument("--by", choices=["ulysses", "ring"], default="ulysses", help="of several")
    parser.add_argument("--layers", type=int, help="of the transformer; by default all")
    parser.add_argument("--steps", type=int, help="by default the model's")
    parser.add_argument("--warm", type=int, default=6, help="steps of the run before each")
    parser.add_argument("--compiled", default="", help="presets with compiled blocks too")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
