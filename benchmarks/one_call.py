"""How far one sparse call is from dense attention, on q, k and v of the shipped pipeline.

    python benchmarks/one_call.py --size 25x160x160 --densities .1,.2,.3 -o one_call.json

The conditional calls of a few layers at a few steps of a dense run of 20 steps are captured; each
candidate then plans and runs every one of them at full sparsity. Relative error: the norm of the
difference from the dense output, over the norm of that, root mean square over calls. Density: of
what was computed, stand-ins included. ``--ages`` runs a plan that is so many steps old, from the
captured calls before; with ``--anew`` the plan is of the call itself, and only clusters are old.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from methods import GUIDANCE, PROMPTS
from torch import Tensor

import vidsparse
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.planning.permute import unpermute_tokens
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.state import LayerState

STEPS = 20
BOXES_128: dict[str, Any] = {"block": 128, "tile_frames": 2}
MEANS: dict[str, Any] = {"estimator": "routing", "compensation": "centroid"}
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "draft": ("draft", {}),
    "adaspa": ("adaspa", {}),
    "balanced 64": ("balanced", {}),
    "balanced 128": ("balanced", BOXES_128),
    "balanced 128, flat boxes": ("balanced", {"block": 128, "tile_width": 16}),
    "balanced 64, keys 32": ("balanced", {"key_block": 32}),
    "balanced 64, keys 16": ("balanced", {"key_block": 16}),
    "balanced 128, keys 64": ("balanced", BOXES_128 | {"key_block": 64}),
    "balanced 128, keys 32": ("balanced", BOXES_128 | {"key_block": 32}),
    "balanced 128, keys 16": ("balanced", BOXES_128 | {"key_block": 16}),
    "means 64": ("balanced", MEANS),
    "means 128": ("balanced", BOXES_128 | MEANS),
    "means 64, keys 32": ("balanced", MEANS | {"key_block": 32}),
    "means 64, keys 16": ("balanced", MEANS | {"key_block": 16}),
    "means 128, keys 64": ("balanced", BOXES_128 | MEANS | {"key_block": 64}),
    "means 128, keys 32": ("balanced", BOXES_128 | MEANS | {"key_block": 32}),
    "means 128, keys 16": ("balanced", BOXES_128 | MEANS | {"key_block": 16}),
    "balanced 128, keys 32, centroid": (
        "balanced",
        BOXES_128 | {"key_block": 32, "compensation": "centroid"},
    ),
    "semantic": ("semantic", {}),
    "semantic, 5 iterations": ("semantic", {"first_iterations": 5}),
    "semantic, 2 iterations": ("semantic", {"first_iterations": 2}),
    "semantic, 100 x 500": ("semantic", {"q_clusters": 100, "kv_clusters": 500}),
    "semantic, keys alone 64": ("semantic", {"sides": "keys"}),
    "semantic, keys alone 128": ("semantic", BOXES_128 | {"sides": "keys"}),
    "semantic, queries alone, keys 64": ("semantic", {"sides": "queries", "key_block": 64}),
    "semantic, queries alone, keys 16": ("semantic", {"sides": "queries", "key_block": 16}),
    "semantic, no means": ("semantic", {"estimator": "value_aware", "mass": "pooled",
                                        "compensation": "none"}),
    "semantic, keys alone 128, no means": (
        "semantic",
        BOXES_128 | {"sides": "keys", "estimator": "value_aware", "mass": "pooled",
                     "compensation": "none"},
    ),
}  # fmt: skip

Calls = dict[tuple[int, int], tuple[Tensor, ...]]
"""q, k and v, ``(1, heads, seq, head_dim)``, by layer and step."""


class _EnoughError(Exception):
    """All calls are captured."""


def main() -> None:
    args = parse()
    grid, calls = captured(args)
    exact = {at: dense(*qkv) for at, qkv in calls.items()}
    rows: list[dict[str, Any]] = []
    for name in args.candidates.split(";") if args.candidates else CANDIDATES:
        preset, changes = CANDIDATES[name] if name in CANDIDATES else read(name)
        for density in map(float, args.densities.split(",")):
            for age in map(int, args.ages.split(",")):
                chosen = PRESETS[preset].override(changes | {"density": density})
                facts = run(chosen, grid, calls, exact, age, args.anew)
                rows.append({"candidate": name, "asked": density, "age": age, **facts})
                print(json.dumps(rows[-1]), flush=True)
    if args.output:
        record = {"command": " ".join(sys.argv), "grid": str(grid), "rows": rows}
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def read(text: str) -> tuple[str, dict[str, Any]]:
    """A candidate that has no name here: ``preset,parameter=value,...``."""
    preset, *pairs = text.split(",")
    return preset, dict(pair.split("=") for pair in pairs)


def run(
    preset: Preset,
    grid: TokenGrid,
    calls: Calls,
    exact: dict[tuple[int, int], Tensor],
    age: int,
    anew: bool = False,
) -> dict[str, Any]:
    """Errors and densities of the calls that have one ``age`` steps before them, and of age 0."""
    squares, densities, start = [], [], time.perf_counter()
    for layer, step in calls:
        if (layer, step - age) not in calls:
            continue
        planner = Planner(preset.policy, 1 if anew else age + 1)
        state, works = LayerState(), []
        for at in (step - age, step) if age else (step,):
            inputs = inputs_of(preset, grid, calls[layer, at], layer, at)
            inputs = dataclasses.replace(inputs, state=state, remember=age > 0)
            works.append(planner.work(inputs, 1.0))
        work = works[-1]
        q, k, v = work.inputs.qkv
        out = attention(q, k, v, work.plan)
        if work.q_order is not None:
            out = unpermute_tokens(out, work.q_order)
        wrong = out - exact[layer, step]
        squares.append(float(wrong.square().sum() / exact[layer, step].square().sum()))
        densities.append(float(work.head_density().mean()))
    return {
        "error": (sum(squares) / len(squares)) ** 0.5,
        "density": sum(densities) / len(densities),
        "calls": len(squares),
        "seconds": time.perf_counter() - start,
    }


def inputs_of(
    preset: Preset, grid: TokenGrid, qkv: tuple[Tensor, ...], layer: int, step: int
) -> Inputs:
    """A call as policies see it."""
    q, k, v = qkv
    policy = preset.policy
    block = policy.block_on(q.device.type, grid.tokens, q.shape[-1])
    blocks = Blocks(grid, block, q.device, key_block=policy.key_block)
    scale, heads = q.shape[-1] ** -0.5, q.shape[1]
    return Inputs(
        blocks=blocks, q=q, k=k, v=v, scale=scale, heads=heads, layer=layer, step=step,
        density=policy.density,
    )  # fmt: skip


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Head by head, since all scores at once do not fit."""
    attend = torch.nn.functional.scaled_dot_product_attention
    heads = (x.split(1, dim=1) for x in (q, k, v))
    return torch.cat([attend(*each) for each in zip(*heads, strict=True)], dim=1)


def captured(args: argparse.Namespace) -> tuple[TokenGrid, Calls]:
    """The calls of a file, or of a run, which then writes the file."""
    if args.calls and args.calls.exists():
        found = torch.load(args.calls)
        return TokenGrid.parse(found["grid"]), found["calls"]
    layers, steps = ([int(n) for n in text.split(",")] for text in (args.layers, args.steps))
    wanted = {(layer, step) for layer in layers for step in steps}
    frames, height, width = (int(n) for n in args.size.split("x"))
    found, grids = {}, []
    attend = SparseAttention.__call__

    def listen(self: SparseAttention, *arguments: Any, **named: Any) -> Tensor:
        *qkv, call, _ = arguments[:5]
        assert isinstance(call, Call)
        if call.step > max(steps):
            raise _EnoughError
        if (call.layer, call.step) in wanted and call.branch == "cond":
            found[call.layer, call.step] = tuple(x.transpose(1, 2).contiguous() for x in qkv)
            grids.append(call.grid)
        return attend(self, *arguments, **named)

    pipe: Any = DiffusionPipeline.from_pretrained(TINY, use_safetensors=True)
    with (
        patch.object(SparseAttention, "__call__", listen),
        vidsparse.sparsify(pipe, "draft", density=1.0),
        contextlib.suppress(_EnoughError),
    ):
        pipe(
            PROMPTS[args.prompt],
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(args.seed),
            output_type="latent",
        )
    if args.calls:
        torch.save({"grid": str(grids[0]), "calls": found}, args.calls)
    return grids[0], found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", default="", help="some of them, separated by semicolons")
    parser.add_argument("--densities", default=".1,.2,.3")
    parser.add_argument("--ages", default="0", help="steps since the plan was made")
    parser.add_argument("--anew", action="store_true", help="plan anew from older clusters")
    parser.add_argument("--size", default="25x160x160")
    parser.add_argument("--layers", default="1,3,5")
    parser.add_argument("--steps", default="5,6,8,12,14")
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=Path, help="where captured calls are kept")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
