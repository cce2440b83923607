"""The shipped model's attention, from what ``benchmarks/attention_profile.py`` wrote.

python benchmarks/attention_plot.py benchmarks/results/tiny_attention.json -o docs/attention.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt

SHOWN = "49x256x256"
COLOURS = plt.get_cmap("viridis")


def main() -> None:
    args = parse()
    found = json.loads(args.file.read_text())[args.size]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), constrained_layout=True)
    figure.suptitle(f"Attention of the shipped model at {args.size}, grid {found['grid']}")
    draw_decay(axes[0][0], found, "time", "latent frames between query and key")
    draw_decay(axes[0][1], found, "space", "rows or columns between query and key")
    draw_map(axes[1][0], found["calls"], "head", "head")
    draw_map(axes[1][1], found["calls"], "noise level", "noise level")
    figure.savefig(args.output, dpi=110)


def draw_decay(axes: Any, found: dict[str, Any], kind: str, label: str) -> None:
    """Mean mass of a key over that of equal keys, a line for each layer."""
    equal = found["equal keys"][kind]
    for layer, calls in sorted(grouped(found["calls"], "layer").items()):
        ratio = [mean(call[kind][d] for call in calls) / share for d, share in enumerate(equal)]
        axes.plot(ratio, color=COLOURS(layer / 8), label=f"layer {layer}")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel=label, ylabel="mass of a key, 1 if all were equal", yscale="log")
    axes.legend(fontsize=7, ncol=2)


def draw_map(axes: Any, calls: list[dict[str, Any]], key: str, label: str) -> None:
    """The share of blocks that hold 90 % of the mass, by layer and something else."""
    columns = sorted({call[key] for call in calls}, reverse=key != "head")
    layers = sorted({call["layer"] for call in calls})
    table = [
        [mean(c["blocks"] for c in calls if (c["layer"], c[key]) == (layer, column))
         for column in columns]
        for layer in layers
    ]  # fmt: skip
    axes.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if value < 0.6 else "black")  # fmt: skip
    axes.set(xticks=range(len(columns)), xticklabels=[f"{c:g}" for c in columns], yticks=layers)
    axes.set(xlabel=label, ylabel="layer", title="share of blocks of 64 that hold 90 % of the mass")


def grouped(calls: list[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for call in calls:
        groups[call[key]].append(call)
    return groups


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", default=SHOWN)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
