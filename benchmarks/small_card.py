"""Wan 14B under the memory of a small card: 8-bit weights that wait in host memory, block by block.

    python benchmarks/small_card.py wan-14b --gib 24 --steps 2 balanced -o small_card.json

Random weights; the VAE is that of Wan 2.1 and decodes in tiles; the text encoder, which is on the
GPU before anything else, is left out. Torch may take no more than ``--gib``: a run that needs more
fails. ``small`` tries the script, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import torchao
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import vidsparse
from vidsparse.pipelines.running.empty import weightless
from vidsparse.pipelines.running.stack import Stack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Model(NamedTuple):
    """A Wan transformer, and the frames, height and width of what it makes."""

    layers: int
    heads: int
    ffn: int
    size: tuple[int, int, int]
    shift: float


MODELS = {
    "wan-14b": Model(40, 40, 13824, (81, 720, 1280), 5.0),
    "small": Model(2, 2, 64, (9, 64, 96), 3.0),
}


def main() -> None:
    args = parse()
    model = MODELS[args.model]
    if DEVICE == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.gib * 2**30 / total))
    pipe = build(model, args.layers or model.layers, args.offload)
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": {
            each.__name__: each.__version__ for each in (torch, diffusers, torchao, vidsparse)
        },
        "cap_gib": args.gib, "model": args.model, "layers": args.layers or model.layers,
        "of": model.layers, "steps": args.steps, "offload": args.offload, "rows": [],
    }  # fmt: skip
    for preset in (None, *args.presets):
        record["rows"].append(run(pipe, model, preset, args.steps))
        print(json.dumps(record["rows"][-1]))
        if args.output:
            args.output.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--gib", type=float, default=24)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--offload", choices=("model", "group"), default="group")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_intermixed_args()  # presets may stand after options


def build(model: Model, layers: int, offload: Any) -> Any:
    """A pipeline whose transformer is quantised before it has ever been on the GPU."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with weightless():
        transformer = WanTransformer3DModel(
            num_layers=layers, num_attention_heads=model.heads, ffn_dim=model.ffn
        ).eval()
    fill(transformer)
    vae = AutoencoderKLWan(base_dim=96 if model.layers > 2 else 8).eval()  # small: to try it
    torch.set_default_dtype(torch.float32)
    quantize_(transformer, Int8WeightOnlyConfig())
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=model.shift
    )
    left_out: Any = dict.fromkeys(("tokenizer", "text_encoder"))
    parts: Any = {"transformer": transformer, "vae": vae, "scheduler": scheduler} | left_out
    pipe: Any = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    Stack(offload=offload, vae_tiling=True).set_up(pipe, DEVICE)
    return pipe


def fill(transformer: nn.Module) -> None:
    """Random weights, the same numbers over and over: drawing 14 billion takes minutes."""
    largest = max(weight.numel() for weight in transformer.parameters())
    drawn = 0.02 * torch.randn(largest)
    for module in transformer.modules():
        for name, weight in module.named_parameters(recurse=False):
            filled = drawn[: weight.numel()].view(weight.shape).clone()
            setattr(module, name, nn.Parameter(filled, requires_grad=False))


def run(pipe: Any, model: Model, preset: str | None, steps: int) -> dict[str, Any]:
    """Seconds and most memory of a run, from noise to frames."""
    frames, height, width = model.size
    embeds = torch.randn(1, 512, 4096, dtype=torch.bfloat16)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    session = vidsparse.sparsify(pipe, preset) if preset else nullcontext()
    with session:
        started = time.perf_counter()
        pipe(
            prompt_embeds=embeds.to(DEVICE), negative_prompt_embeds=-embeds.to(DEVICE),
            num_frames=frames, height=height, width=width, num_inference_steps=steps,
            output_type="np", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    on_gpu = DEVICE == "cuda"
    return {
        "preset": preset or "dense",
        "seconds": seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
    }


if __name__ == "__main__":
    main()
