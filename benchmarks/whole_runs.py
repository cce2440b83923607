"""Whole denoising runs of real-size Wan transformers with random weights, in one process.

    python benchmarks/whole_runs.py wan-14b --layers 2 --compiled balanced -o wan14b.json

The real ``WanPipeline`` with its scheduler and guidance, without text encoder and VAE. Stock
diffusers first, then each preset, then the same with the blocks compiled. Every layer of a model
is alike, so a few of them stand for all: the rest of a step is small.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
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
        "model": args.model, "layers": layers, "of": model.layers, "steps": steps, "rows": [],
    }  # fmt: skip
    for mode in ("eager", "compiled")[: 1 + bool(args.compiled)]:
        if mode == "compiled":
            pipe.transformer.compile_repeated_blocks(dynamic=False)
        measure(pipe, embeds, model, steps, args, mode, record)


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


def run(pipe: Any, embeds: torch.Tensor, model: Model, steps: int) -> float:
    """Seconds of a run."""
    frames, height, width = model.size
    wait()
    start = time.perf_counter()
    pipe(
        prompt_embeds=embeds, negative_prompt_embeds=-embeds,
        num_frames=frames, height=height, width=width, guidance_scale=5.0,
        num_inference_steps=steps, output_type="latent",
        generator=torch.Generator(DEVICE).manual_seed(0),
    )  # fmt: skip
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(
    pipe: Any, embeds: torch.Tensor, model: Model, steps: int, args: argparse.Namespace,
    mode: str, record: dict[str, Any],
) -> None:  # fmt: skip
    """Stock, then each preset; a short run before each builds what is built once."""
    run(pipe, embeds, model, 2)
    add(args, record, mode, "stock", run(pipe, embeds, model, steps), {})
    if mode == "eager":
        blocks, pipe.transformer.blocks = pipe.transformer.blocks, torch.nn.ModuleList()
        record["seconds_without_layers"] = run(pipe, embeds, model, steps)
        pipe.transformer.blocks = blocks
    more: dict[str, Any] = {} if DEVICE == "cuda" else {"min_tokens": 0}
    for name in (args.presets if mode == "eager" else args.compiled).split(","):
        with vidsparse.sparsify(pipe, name, strict=True, **more) as session:
            run(pipe, embeds, model, args.warm)
            seconds, stats = run(pipe, embeds, model, steps), session.stats
            add(args, record, mode, name, seconds, {
                "mean_density": stats.mean_density,
                "dense_steps_share": stats.dense_steps_share,
                "plan_seconds": stats.plan_seconds,
                "attention_seconds": stats.attention_seconds,
                "engines": dict(stats.engines),
                "fallbacks": dict(stats.fallbacks),
                "notes": list(stats.notes),
                "parameters": session.preset.plain_parameters(),
            })  # fmt: skip


def add(
    args: argparse.Namespace, record: dict[str, Any], mode: str, name: str, seconds: float,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    rows = record["rows"]
    rows.append({"mode": mode, "preset": name, "seconds": seconds} | facts)
    rows[-1]["over_stock"] = rows[0]["seconds"] / seconds
    calls = 2 * record["steps"] * record["layers"]
    rest = record.get("seconds_without_layers", 0.0)
    rows[-1]["ms_a_layer"] = 1000 * (seconds - rest) / calls
    density = f", density {facts['mean_density']:.3f}" if facts else ""
    planning = f", planning {facts['plan_seconds']:.2f} s" if facts else ""
    print(
        f"{record['model']} {mode:9s} {name:10s} {seconds:7.2f} s  "
        f"{rows[-1]['over_stock']:.2f}x stock{density}{planning}",
        flush=True,
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--presets", default="balanced,fast")
    parser.add_argument("--layers", type=int, help="of the transformer; by default all")
    parser.add_argument("--steps", type=int, help="by default the model's")
    parser.add_argument("--warm", type=int, default=6, help="steps of the run before each")
    parser.add_argument("--compiled", default="", help="presets with compiled blocks too")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
