"""Where the attention mass lies in blocks and in clusters, and what each method keeps of it.

    python benchmarks/mass_maps.py -o docs/mass_maps.png

One call of the shipped pipeline, its exact attention of one head summed over the blocks of `draft`
and over the clusters of `svg2` at the same density. Left the mass, right the same with what is not
kept in grey. Rows and columns are as wide as their blocks hold tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from methods import PROMPTS
from PIL import Image, ImageDraw
from torch import Tensor

import vidsparse
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.presets import PRESETS
from vidsparse.sparse_attention import SparseAttention

SIDE, MARGIN, TEXT = 360, 12, 34
METHODS: dict[str, dict[str, Any]] = {
    "draft": {},
    "svg2": {"first_iterations": 10, "scope": "head"},  # each head the same density
}


def main() -> None:
    args = parse()
    call = capture(args.layer, args.step)
    head = args.head
    width, height = 2 * SIDE + 3 * MARGIN, len(METHODS) * (SIDE + TEXT) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, changes) in enumerate(METHODS.items()):
        policy = PRESETS[name].override({"density": args.density, **changes}).policy
        work = Planner(policy).work(call, 1.0)
        edges = (
            edges_of(work.plan.q_offsets, call, head),
            edges_of(work.plan.kv_offsets, call, head),
        )
        mass = block_sums(work.inputs, head, *edges)
        keep = work.plan.to_block_mask()[0, head]
        share, density = (
            float(mass[keep].sum() / mass.sum()),
            float(work.plan.head_density()[0, head]),
        )
        caption = (
            f"{name}: layer {args.layer}, head {head}, step {args.step}: density {density:.2f} "
            f"keeps {share:.1%} of the mass, {mass.shape[0]} x {mass.shape[1]} blocks"
        )
        print(caption)
        top = i * (SIDE + TEXT)
        draw.text((MARGIN, top + 12), caption, fill="black")
        mean = mass / (edges[0].diff()[:, None] * edges[1].diff()).clamp(min=1)
        for j, shown in enumerate((None, keep)):
            picture = paint(mean, *edges, shown)
            sheet.paste(picture, (MARGIN + j * (SIDE + MARGIN), top + TEXT))
    sheet.save(args.output)


def capture(layer: int, step: int) -> Inputs:
    """q, k and v of one conditional call of a dense run."""
    found: list[Inputs] = []
    attend = SparseAttention.__call__

    def listen(self, *arguments):
        call = arguments[3]
        if (call.layer, call.step, call.branch) == (layer, step, "cond"):
            q, k, v = (x.transpose(1, 2).clone() for x in arguments[:3])
            blocks = Blocks(call.grid, 64, q.device)
            scale = q.shape[-1] ** -0.5
            found.append(Inputs(blocks=blocks, q=q, k=k, v=v, scale=scale, heads=q.shape[1]))
        return attend(self, *arguments)

    pipe: Any = DiffusionPipeline.from_pretrained(TINY, use_safetensors=True)
    with (
        patch.object(SparseAttention, "__call__", listen),
        vidsparse.sparsify(pipe, "draft", density=1.0),
    ):
        pipe(
            PROMPTS[0],
            num_frames=25,
            height=160,
            width=160,
            num_inference_steps=step + 1,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    return found[0]


def edges_of(offsets: Tensor | None, call: Inputs, head: int) -> Tensor:
    if offsets is not None:
        return offsets[0, head].long()
    tokens, block = call.blocks.grid.tokens, call.blocks.block
    return torch.arange(0, tokens + block, block).clamp(max=tokens)


def block_sums(inputs: Inputs, head: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Exact attention of one head, summed over pairs of blocks."""
    q, k, _ = inputs.qkv
    share = (q[0, head].double() @ k[0, head].double().T * inputs.scale).softmax(dim=-1)
    sums = torch.nn.functional.pad(share.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return sums[rows][:, columns].diff(dim=0).diff(dim=1).clamp(min=0)


def paint(mean: Tensor, rows: Tensor, columns: Tensor, keep: Tensor | None) -> Image.Image:
    """Log of the mean share of a pair, yellow high and blue low."""
    level = mean.clamp(min=1e-12).log10()
    high = float(level.max())
    level = ((level - high + 5) / 5).clamp(0, 1).numpy()  # five decades
    colour = np.stack([level, 0.15 + 0.75 * level, 0.45 - 0.35 * level], axis=-1)
    if keep is not None:
        colour = np.where(keep.numpy()[..., None], colour, 0.88)
    at = [np.linspace(0, int(edges[-1]) - 1, SIDE).astype(int) for edges in (rows, columns)]
    i, j = (
        np.searchsorted(edges[1:].numpy(), each, side="right")
        for edges, each in zip((rows, columns), at, strict=True)
    )
    return Image.fromarray((colour[i][:, j] * 255).astype("uint8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--head", type=int, default=0)
    parser.add_argument("--step", type=int, default=7)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
