"""How full the tiles of clusters are, and what moving tokens to fill them changes.

    python benchmarks/filled_tiles.py -o benchmarks/results/filled_tiles_cpu.json

Queries and keys of the shipped pipeline at 49 x 256 x 256 (13,312 tokens), one prompt, guidance 4,
in the second sparse step of eight, clustered as ``semantic`` has it in blocks of 128; means over
layers. ``empty`` is over what clusters hold: of queries the rows of tiles of 128, of which the last
counts half where it holds 64 or fewer, of keys those of chunks of 16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import ladder
import torch

import vidsparse
from vidsparse.kernels.planning.kmeans import Clusters, kmeans
from vidsparse.policies import semantic
from vidsparse.versions import versions

SIZE = "49x256x256"
STEPS = 8
SIDES = {"queries": 128, "keys": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default=SIZE)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    seen = clustered(args.size)
    rows = [{"side": side} | row(side, seen[at::2]) for at, side in enumerate(SIDES)]
    record = {"command": " ".join(sys.argv), "versions": versions(), "size": args.size}
    text = json.dumps(record | {"rows": rows}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


class Seen(RuntimeError):
    """Ends a run that has shown enough."""


def clustered(size: str) -> list[tuple[Any, ...]]:
    """What k-means is given in the second sparse step: queries and keys, layer by layer."""
    studio = ladder.Studio(size, 1, 1)
    calls: list[tuple[Any, ...]] = []
    layers = len(studio.pipe.transformer.blocks)

    def noted(x: torch.Tensor, clusters: int, **options: Any) -> Clusters:
        calls.append((x, clusters, options))
        if len(calls) == 2 * 2 * layers:
            raise Seen
        return kmeans(x, clusters, **options)

    changes = {"block": 128, "replan": 1, "min_tokens": 0, "mean_density": 0.3}
    with (
        patch.object(semantic, "kmeans", noted),
        vidsparse.sparsify(studio.pipe, "semantic", **changes),
    ):
        try:
            studio.clips(5.0, STEPS)
        except Seen:
            return calls[-2 * layers :]
    raise AssertionError("the run ended before it had clustered")


def row(side: str, seen: list[tuple[Any, ...]]) -> dict[str, Any]:
    """One side as k-means leaves it and filled."""
    tile = SIDES[side]
    found: dict[str, Any] = {"clusters": seen[0][1], "moved": []}
    for x, number, options in seen:
        assert options.pop("multiple_of") == tile
        plain, filled = (kmeans(x, number, **options, multiple_of=of) for of in (None, tile))
        found["moved"].append(moved(plain, filled))
        for name, made in (("plain", plain), ("filled", filled)):
            for what, value in (
                ("empty", empty(made.sizes, tile)),
                ("whole", float((made.sizes % tile == 0).float().mean())),
                ("distance", distance(x, made)),
            ):
                found.setdefault(f"{what}, {name}", []).append(value)
    return {name: mean(each) if isinstance(each, list) else each for name, each in found.items()}


def empty(sizes: torch.Tensor, tile: int) -> float:
    """Empty rows or keys over full ones."""
    rest = sizes % tile
    spare = torch.where(rest > 0, tile - rest, 0)
    if tile == SIDES["queries"]:
        spare = torch.where((rest > 0) & (rest <= tile // 2), tile // 2 - rest, spare)
    return float(spare.sum() / sizes.sum())


def moved(plain: Clusters, filled: Clusters) -> float:
    """The share of tokens that left those with which they stood."""
    left = []
    for before, after in zip(plain.labels.flatten(0, 1), filled.labels.flatten(0, 1), strict=True):
        table = torch.zeros(plain.sizes.shape[-1], filled.sizes.shape[-1])
        at = before.long().cpu(), after.long().cpu()
        table.index_put_(at, torch.ones(len(before)), accumulate=True)
        left.append(1 - float(table.amax(dim=1).sum()) / len(before))
    return sum(left) / len(left)


def distance(x: torch.Tensor, made: Clusters) -> float:
    """Mean square of tokens from their centroids, over that from their common mean."""
    at = made.labels.long()[..., None].expand(*x.shape)
    own = x.float() - made.centroids.gather(2, at)
    return float(own.square().sum() / (x - x.mean(dim=2, keepdim=True)).float().square().sum())


if __name__ == "__main__":
    main()
