"""Fidelity over density, a line for each method, from what ``benchmarks/methods.py`` wrote.

python benchmarks/methods_plot.py benchmarks/results/methods_*.json -o docs/methods.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

TOKENS = {"49x256x256": "13,312", "25x160x160": "2,800"}
LABEL = 1.1  # dB from one label to the next
NAMED = {  # in colours that the colour-blind tell apart (Okabe and Ito); the rest is grey
    "auto": "#D55E00",
    "semantic": "#CC79A7",
    "svg2": "#0072B2",
    "adaspa": "#56B4E9",
    "balanced": "#009E73",
    "draft": "#E69F00",
    "random": "#000000",
}


def main() -> None:
    args = parse()
    records = [json.loads(path.read_text()) for path in args.results]
    fig, axes = plt.subplots(
        1, len(records), figsize=(6 * len(records), 5), sharey=True, layout="constrained"
    )
    for axis, record in zip(fig.axes if len(records) > 1 else [axes], records, strict=True):
        draw(axis, record)
    fig.savefig(args.output, dpi=110)


def draw(axis: Any, record: dict[str, Any]) -> None:
    """One size: PSNR against dense over the realised mean density."""
    found = {method: sorted(points) for method, points in lines(record["rows"]).items()}
    right = max(points[-1][0] for points in found.values())
    height = float("-inf")
    for method, points in sorted(found.items(), key=lambda item: item[1][-1][1]):
        colour, named = NAMED.get(method, "#999999"), method in NAMED
        axis.plot(*zip(*points, strict=True), "o-", color=colour, lw=2.2 if named else 1, ms=4)
        height = max(points[-1][1], height + LABEL)  # labels stand apart, whatever they name
        axis.annotate(
            method, points[-1], xytext=(right + 0.02, height), textcoords="data", va="center",
            fontsize=8, color=colour, arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.4},
        )  # fmt: skip
    axis.set_xlim(right=right + 0.1)
    tokens = TOKENS.get(record["size"], record["size"])
    clips = len(record["cases"])
    title = f"{tokens} tokens, {record['steps']} steps, {clips} clips"
    axis.set_title(f"{title}\n{record['note']}" if "note" in record else title, fontsize=10)
    axis.set_xlabel("mean density, dense steps included")
    axis.set_ylabel("PSNR against dense, dB")
    axis.grid(alpha=0.3)


def lines(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Density and PSNR of the presets, without variants of them."""
    found = defaultdict(list)
    for row in rows:
        if "psnr" in row and row["method"] == row["preset"]:
            found[row["method"]].append((row["mean_density"], row["psnr"]))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
