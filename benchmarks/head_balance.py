"""How unequal devices' work would be with heads left in turn, and how it is with them dealt anew.

    python benchmarks/head_balance.py -o benchmarks/results/head_densities_25x160x160.json

Densities of the heads are those of a run of the shipped, trained pipeline; imbalance is the work of
the busiest device over the mean, as db-SP (arXiv 2511.23113) counts it. As in context parallelism,
the densities of one step deal out the heads of the next. Nothing is timed, so a CPU will do. The
mean densities of each layer's heads are kept: ``context_parallel.py --uneven`` puts them onto the
shape of a real model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from methods import PROMPTS, Runner
from torch import Tensor

import vidsparse
from vidsparse.errors import BadInputError
from vidsparse.head_sharing import HeadShare
from vidsparse.pipelines.parallel import better_share

DEVICES = 2  # which share its four heads


def main() -> None:
    args = parse()
    runner = Runner(args)
    rows: list[dict[str, Any]] = []
    for name in args.presets.split(","):
        with vidsparse.sparsify(runner.pipe, name, min_tokens=0, strict=True) as session:
            runner.generate(PROMPTS[0])
        rows.append({"preset": name, "devices": DEVICES, **imbalances(session.stats)})
        print(rows[-1], flush=True)
        rows[-1]["head_densities"] = head_densities(session.stats)
    if args.output:
        record = {"command": " ".join(sys.argv), "size": args.size, "rows": rows}
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def imbalances(stats: Any) -> dict[str, float]:
    """Mean and worst over the sparse calls of all layers after the first."""
    layers: dict[Any, list[Tensor]] = defaultdict(list)
    for key, density in stats.calls.items():  # in the order of the steps
        if len(density) > 1:
            layers[key.layer, key.branch].append(density)
    in_turn, dealt = [], []
    for densities in layers.values():
        turn = share = HeadShare(
            order=tuple(range(len(densities[0]))), devices=DEVICES, rank=0, exchange=torch.clone
        )
        for before, density in pairwise(densities):
            share = better_share(share, before)
            in_turn.append(float(turn.imbalance(density)))
            dealt.append(float(share.imbalance(density)))
    return {
        "in_turn": mean(in_turn), "in_turn_worst": max(in_turn),
        "dealt": mean(dealt), "dealt_worst": max(dealt),
    }  # fmt: skip


def head_densities(stats: Any) -> list[list[float]]:
    """Of each layer, those of its heads, mean over its sparse calls.

    Raises:
        BadInputError: When a layer had no call in which heads are counted apart.
    """
    layers: dict[int, list[Tensor]] = {key.layer: [] for key in stats.calls}
    for key, density in stats.calls.items():
        if len(density) > 1:
            layers[key.layer].append(density)
    if not all(layers.values()):
        bare = ", ".join(str(layer) for layer, calls in layers.items() if not calls)
        raise BadInputError(f"no sparse call of layers {bare} has a density for each head")
    return [torch.stack(layers[layer]).double().mean(0).tolist() for layer in sorted(layers)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="25x160x160", help="FRAMESxHEIGHTxWIDTH in pixels")
    parser.add_argument("--presets", default="balanced,adaspa")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
