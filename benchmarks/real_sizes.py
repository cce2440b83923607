"""One forward call of real-size transformers with random weights, dense and sparse, in one process.

    python benchmarks/real_sizes.py -o benchmarks/results/real_sizes_h200.json
    python benchmarks/real_sizes.py --compile --models wan-14b-720p -o compiled.json

Random weights spend the time of trained ones; what a data-driven plan keeps, and so the fidelity,
means nothing here. Every call is a new denoising step, as in a run: plans are made anew. With
``--compile`` the blocks are compiled one by one and the recompilations after the second step are
counted. ``--tiny`` is for machines without a GPU: the same code on small models.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

import vidsparse
from vidsparse.bench import kernel_bench

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


class Real(NamedTuple):
    """A transformer and the arguments of its forward call.

    Attributes:
        transformer: Class in diffusers.
        config: What differs from the class's defaults.
        tiny: What differs from that in a tiny one.
        inputs: From a scale of rows and columns, the arguments without the timestep.
        timestep: Name of that argument, and its value at pure noise.
    """

    transformer: str
    config: dict[str, Any]
    tiny: dict[str, Any]
    inputs: Callable[[float, Any], dict[str, Any]]
    timestep: tuple[str, float] = ("timestep", 1000.0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def even(number: float) -> int:
    return max(2, round(number / 2) * 2)


def wan(scale: float, config: Any) -> dict[str, Any]:
    return {
        "hidden_states": randn(1, 16, max(3, int(21 * scale)), even(90 * scale), even(160 * scale)),
        "encoder_hidden_states": randn(1, 512, config.text_dim),
    }


def hunyuan(scale: float, config: Any) -> dict[str, Any]:
    mask = torch.zeros(1, 256, device=DEVICE, dtype=torch.long)
    mask[:, :90] = 1
    return {
        "hidden_states": randn(1, 16, max(3, int(33 * scale)), even(90 * scale), even(160 * scale)),
        "encoder_hidden_states": randn(1, 256, config.text_embed_dim),
        "encoder_attention_mask": mask,
        "pooled_projections": randn(1, config.pooled_projection_dim),
        "guidance": torch.full((1,), 6000.0, device=DEVICE, dtype=DTYPE),
    }


def cogvideox(scale: float, config: Any) -> dict[str, Any]:
    rows, columns = even(60 * scale), even(90 * scale)
    frames = max(3, int(13 * scale))
    size = (frames * rows * columns // 4, config.attention_head_dim)
    return {
        "hidden_states": randn(2, frames, 16, rows, columns),
        "encoder_hidden_states": randn(2, config.max_text_seq_length, config.text_embed_dim),
        "image_rotary_emb": tuple(torch.randn(size, device=DEVICE) for _ in range(2)),
    }


def ltx(scale: float, config: Any) -> dict[str, Any]:
    frames, rows, columns = max(3, int(21 * scale)), even(22 * scale), even(38 * scale)
    return {
        "hidden_states": randn(1, frames * rows * columns, config.in_channels),
        "encoder_hidden_states": randn(1, 128, config.caption_channels),
        "encoder_attention_mask": torch.ones(1, 128, device=DEVICE, dtype=torch.long),
        "num_frames": frames,
        "height": rows,
        "width": columns,
    }


def flux(scale: float, config: Any) -> dict[str, Any]:
    side = even(256 * scale)
    ids = torch.zeros(side, side, 3, device=DEVICE, dtype=DTYPE)
    ids[..., 1] = torch.arange(side, device=DEVICE)[:, None]
    ids[..., 2] = torch.arange(side, device=DEVICE)
    return {
        "hidden_states": randn(1, side * side, config.in_channels),
        "encoder_hidden_states": randn(1, 512, config.joint_attention_dim),
        "pooled_projections": randn(1, config.pooled_projection_dim),
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(512, 3, device=DEVICE, dtype=DTYPE),
        "guidance": torch.full((1,), 3.5, device=DEVICE, dtype=DTYPE),
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
MODELS = {
    "wan-14b-720p": Real(
        "WanTransformer3DModel",
        {"num_layers": 8},  # of 40
        HEADS | {"num_layers": 2, "ffn_dim": 64, "text_dim": 32},
        wan,
    ),
    "hunyuan-720p": Real(
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 4, "num_single_layers": 8},  # of 20 and 40
        HEADS
        | {"num_layers": 1, "num_single_layers": 1, "text_embed_dim": 32}
        | {"pooled_projection_dim": 16, "rope_axes_dim": (4, 6, 6)},
        hunyuan,
    ),
    "cogvideox-5b": Real(
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        HEADS | {"num_layers": 2, "text_embed_dim": 32},
        cogvideox,
    ),
    "ltx-2b": Real(
        "LTXVideoTransformer3DModel",
        {},
        HEADS | {"num_layers": 2, "cross_attention_dim": 32, "caption_channels": 32},
        ltx,
    ),
    "flux-4k": Real(
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        HEADS
        | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32}
        | {"pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)},
        flux,
        ("timestep", 1.0),
    ),
}  # fmt: skip
TINY_SCALE = 0.2
IN_SESSION = "dense in a session"  # without padding, where the model masks it


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name in args.models.split(",") if args.models else MODELS:
        for row in measure(name, args):
            rows.append(row)
            show(row)
            if args.output:
                kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv)))


@torch.inference_mode()
def measure(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Dense and every preset take turns, with a warm-up each."""
    real = MODELS[name]
    model = build(real, args.tiny)
    inputs = real.inputs(TINY_SCALE if args.tiny else 1.0, model.config)
    if args.compile:
        compile_blocks(model)
    dense = run(model, real, inputs, None, args)
    layers = 0
    for preset in [IN_SESSION, *args.presets.split(",")]:
        sparse = run(model, real, inputs, preset, args)
        if not layers:  # only a session knows how many
            layers = sparse["layers"]
            yield {"model": name, "preset": "dense", **dense, "layers": layers,
                   "ms_per_layer": dense["ms"] / max(1, layers), "speedup": 1.0}  # fmt: skip
        yield {"model": name, "preset": preset, **sparse, "speedup": dense["ms"] / sparse["ms"]}
    del model
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def run(
    model: nn.Module, real: Real, inputs: dict[str, Any], preset: str | None, args: Any
) -> dict[str, Any]:
    """Time some steps past the ramp, the first two apart; plain diffusers without a preset."""
    settings: dict[str, Any] = {"min_tokens": 0}
    if preset == IN_SESSION:
        preset, settings = "draft", {"warmup": 1.0, "ramp_until": 1.0}
    session = vidsparse.sparsify(model, preset, **settings) if preset else None
    try:
        argument, full = real.timestep
        times, graphs = [], []
        for step in range(args.steps + 2):
            if session and step == 2:
                session.stats.start_generation()  # what was timed so far is forgotten
            level = torch.tensor([full * (0.6 - 0.02 * step)], device=DEVICE, dtype=DTYPE)
            batch = inputs["hidden_states"].shape[0]
            started = clock()
            model(**inputs, **{argument: level.expand(batch)}, return_dict=False)
            times.append(clock() - started)
            graphs.append(compilations())
    finally:
        if session:
            session.remove()
    facts = {"ms": 1000 * median(times[2:]), "first_ms": 1000 * times[0],
             "recompilations_after_second_step": graphs[-1] - graphs[1]}  # fmt: skip
    if session is None:
        return facts
    stats = session.stats
    layers = len(stats.layer_density)
    return facts | {
        "density": stats.mean_density,
        "attention_ms": 1000 * stats.attention_seconds / args.steps,
        "planning_ms": 1000 * stats.plan_seconds / args.steps,
        "layers": layers,
        "ms_per_layer": facts["ms"] / layers,
        "fallbacks": dict(stats.fallbacks),
        "engines": dict(stats.engines),
    }


def build(real: Real, tiny: bool) -> Any:
    config = real.config | (real.tiny if tiny else {})
    with torch.device(DEVICE):
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPE)
        try:
            return getattr(diffusers, real.transformer)(**config).eval()
        finally:
            torch.set_default_dtype(before)


def compile_blocks(model: nn.Module) -> None:
    """As ``compile_repeated_blocks`` does it; not every class names its blocks for that."""
    for blocks in model.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.compile(dynamic=False)


def clock() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compilations() -> int:
    """Graphs that torch.compile has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['model']:14s} {row['preset']:18s} {row['ms']:9.1f} ms  {row['speedup']:.2f}x  "
        f"{row['ms_per_layer']:7.2f} ms a layer  density {row.get('density', 1.0):.3f}  "
        f"recompilations {row['recompilations_after_second_step']}  {row.get('fallbacks', {})}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--presets", default="balanced,draft,radial")
    parser.add_argument("--steps", type=int, default=3, help="timed calls")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
