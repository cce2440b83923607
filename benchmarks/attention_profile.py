"""What the shipped model attends to: mass against distance, and the blocks that hold 90 % of it.

    python benchmarks/attention_profile.py -o benchmarks/results/tiny_attention.json

A dense run at each size; of every layer and head, at five noise levels of the branch with a
prompt, the exact attention of sampled query blocks. Blocks are of 64 tokens, 8 x 8 of one frame as
`balanced` cuts them, or in raster order. What a distance or a window would hold if all
keys were equal stands beside what it holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from methods import GUIDANCE, PROMPTS
from torch import Tensor

import vidsparse
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.policies.orders import Tile
from vidsparse.sparse_attention import SparseAttention

BLOCK, MASS = 64, 0.9
WINDOW = 0.1552  # share of the tokens in STA's window (arXiv 2502.04507)
LEVELS = 5  # noise levels of a run that are looked at


@dataclass(frozen=True, eq=False)
class Rows:
    """The queries that are looked at, whole blocks of an order, and where they and the keys lie.

    Attributes:
        grid: Of one call.
        order: Position ``p`` holds token ``order[p]``.
        number: How many blocks.
    """

    grid: TokenGrid
    order: Tensor
    number: int

    @cached_property
    def tokens(self) -> Tensor:
        """The queries, block after block."""
        whole = len(self.order) // BLOCK  # the last may be short: never drawn
        drawn = torch.randperm(whole, generator=torch.Generator().manual_seed(0))
        return self.order[: whole * BLOCK].view(whole, BLOCK)[drawn[: self.number]].view(-1)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Frame, row and column of each query."""
        height, width = self.grid.height, self.grid.width
        inside = self.tokens % (height * width)
        return self.tokens // (height * width), inside // width, inside % width

    @cached_property
    def in_time(self) -> Tensor:
        """Frames between a query and each frame, ``(queries, frames)``."""
        return (torch.arange(self.grid.frames) - self.places[0][:, None]).abs()

    @cached_property
    def in_space(self) -> Tensor:
        """Rows or columns, whichever are more, between a query and each place in a frame."""
        _, row, column = self.places
        down = (torch.arange(self.grid.height) - row[:, None]).abs()
        across = (torch.arange(self.grid.width) - column[:, None]).abs()
        return torch.maximum(down[:, :, None], across[:, None]).flatten(1)

    @cached_property
    def windows(self) -> list[Tensor]:
        """For each axis, 1 where a key is inside a query's window, which stays inside the grid."""
        found = []
        for at, length in zip(self.places, self.axes, strict=True):
            width = max(1, round(WINDOW ** (1 / 3) * length))
            start = (at - width // 2).clamp(0, length - width)[:, None]
            keys = torch.arange(length)
            found.append(((keys >= start) & (keys < start + width)).float())
        return found

    @property
    def axes(self) -> tuple[int, int, int]:
        return self.grid.frames, self.grid.height, self.grid.width


def main() -> None:
    args = parse()
    sizes = {}
    for size, steps in (each.split(":") for each in args.sizes.split(",")):
        start = time.perf_counter()
        sizes[size] = {"steps": int(steps)} | measure(size, int(steps), args.prompts, args.blocks)
        seconds = time.perf_counter() - start
        print(f"{size}: {seconds:.0f} s", json.dumps(sizes[size]["means"]), flush=True)
        args.output.write_text(as_json(sizes, args))


def measure(size: str, steps: int, prompts: int, blocks: int) -> dict[str, Any]:
    """Every layer, head and noise level of a size, and what equal keys would give."""
    frames, height, width = map(int, size.split("x"))
    found: list[dict[str, Any]] = []
    for prompt in PROMPTS[:prompts]:
        found += run(prompt, (frames, height, width), steps, blocks)
    grid = found[0].pop("grid")
    for row in found[1:]:
        del row["grid"]
    tiles, _ = sampled(grid, blocks)
    equal = look(tiles, torch.full((len(tiles.tokens), grid.tokens), 1 / grid.tokens))
    names = ("blocks", "raster blocks", "keys", "window", "first frame")
    means = {name: round(sum(row[name] for row in found) / len(found), 4) for name in names}
    return {"grid": str(grid), "means": means, "equal keys": equal, "calls": found}


def run(prompt: str, size: tuple[int, int, int], steps: int, blocks: int) -> list[dict[str, Any]]:
    """One row for each layer, head and noise level that is looked at."""
    found: list[dict[str, Any]] = []
    looked = {round(i * (steps - 1) / (LEVELS - 1)) for i in range(LEVELS)}
    attend = SparseAttention.__call__

    def listen(self: SparseAttention, *arguments: Any) -> Any:
        q, k, _, call, *_ = arguments
        if call.step in looked and call.branch == "cond":
            rows = profile(q[0].transpose(0, 1), k[0].transpose(0, 1), call.grid, blocks)
            found.extend(
                {"layer": call.layer, "step": call.step, "grid": call.grid} | r for r in rows
            )
        return attend(self, *arguments)

    pipe: Any = DiffusionPipeline.from_pretrained(TINY, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    with (
        torch.no_grad(),
        patch.object(SparseAttention, "__call__", listen),
        vidsparse.sparsify(pipe, "draft", density=1.0),
    ):
        pipe(
            prompt,
            **dict(zip(("num_frames", "height", "width"), size, strict=True)),
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    levels = pipe.scheduler.sigmas.tolist()
    return [{"prompt": prompt, "noise level": round(levels[row["step"]], 3)} | row for row in found]


def profile(q: Tensor, k: Tensor, grid: TokenGrid, blocks: int) -> Iterator[dict[str, Any]]:
    """What each head attends to; q and k are ``(heads, seq, head_dim)``."""
    tiles, raster = sampled(grid, blocks)
    for head in range(len(q)):
        mass, plain = (
            (q[head][rows.tokens] @ k[head].T * q.shape[-1] ** -0.5).softmax(-1)
            for rows in (tiles, raster)
        )
        yield (
            {"head": head} | look(tiles, mass) | {"raster blocks": round(needed(raster, plain), 4)}
        )


def sampled(grid: TokenGrid, blocks: int) -> tuple[Rows, Rows]:
    """Query blocks in the tiles of ``balanced``, and in raster order."""
    tiles = Tile().positions(grid)
    assert tiles is not None
    return Rows(grid, tiles.long(), blocks), Rows(grid, torch.arange(grid.tokens), blocks)


def look(rows: Rows, mass: Tensor) -> dict[str, Any]:
    """Shares of the mass ``(queries, keys)``, which sums to 1 for each query."""
    whole = mass.view(len(mass), *rows.axes)
    by_frame, by_place = whole.sum((2, 3)), whole.sum(1).flatten(1)
    return {
        "blocks": round(needed(rows, mass), 4),
        "keys": round(fewest(mass[:: len(mass) // 128 or 1]), 4),
        "window": round(torch.einsum("qfhw,qf,qh,qw->q", whole, *rows.windows).mean().item(), 4),
        "first frame": round(by_frame[:, 0].mean().item(), 4),
        "time": at_distance(rows.in_time, by_frame),
        "space": at_distance(rows.in_space, by_place),
    }


def needed(rows: Rows, mass: Tensor) -> float:
    """The share of key blocks that hold ``MASS`` of a query block's mass."""
    padding = -len(rows.order) % BLOCK
    columns = torch.nn.functional.pad(mass[:, rows.order], (0, padding))
    return fewest(columns.view(-1, BLOCK, columns.shape[1] // BLOCK, BLOCK).sum((1, 3)))


def fewest(mass: Tensor) -> float:
    """The smallest share of the columns that holds ``MASS`` of a row, mean over rows."""
    held = (mass / mass.sum(1, keepdim=True)).sort(1, descending=True).values.cumsum(1)
    return ((held < MASS).sum(1) + 1).float().mean().item() / mass.shape[1]


def at_distance(distance: Tensor, mass: Tensor) -> list[float]:
    """The share of the mass at each distance, mean over queries."""
    sums = torch.zeros(len(mass), int(distance.max()) + 1).scatter_add_(1, distance, mass)
    return [round(value, 5) for value in sums.mean(0).tolist()]


def as_json(sizes: dict[str, Any], args: argparse.Namespace) -> str:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    facts = {
        "what": "The attention of the shipped model, of sampled blocks of 64 queries",
        "command": f"python benchmarks/attention_profile.py --sizes {args.sizes} --prompts "
        f"{args.prompts} --blocks {args.blocks}",
        "versions": versions | {"diffusers": diffusers.__version__},
        "query blocks": args.blocks,
        "mass": MASS,
        "block": BLOCK,
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
    for size, found in sizes.items():
        calls = ",\n   ".join(json.dumps(row) for row in found["calls"])
        rest = {name: value for name, value in found.items() if name != "calls"}
        lines.append(f' "{size}": {json.dumps(rest)[:-1]}, "calls": [\n   {calls}]}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", default="25x160x160:20,49x256x256:10", help="FRAMESxHEIGHTxWIDTH:STEPS"
    )
    parser.add_argument("--prompts", type=int, default=2, help=f"of {len(PROMPTS)}")
    parser.add_argument("--blocks", type=int, default=16, help="query blocks of each head")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
