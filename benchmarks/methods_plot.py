"""Fidelity over density, a line for each method, from what ``benchmarks/ladder.py quality`` wrote.

    python benchmarks/methods_plot.py benchmarks/results/ladder_curves_h200.json \
        benchmarks/results/ladder_methods_h200.json -o docs/methods.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from intervals import half_interval

TOKENS = {"49x256x256": "13,312", "25x160x160": "2,800"}
LABEL = 1.1  # dB from one label to the next
COLOURS = {  # that the colour-blind tell apart (Okabe and Ito)
    "auto": "#D55E00",
    "semantic": "#CC79A7",
    "clusters": "#CC79A7",
    "svg2-ear": "#0072B2",
    "tiles 128, means": "#56B4E9",
    "balanced": "#009E73",
    "tiles 128": "#009E73",
    "draft": "#E69F00",
    "draft 128": "#E69F00",
    "random": "#000000",
}


class Point(NamedTuple):
    """What a method reached at one density: the mean over clips, and its 95 % interval's half."""

    density: float
    psnr: float
    half: float


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
    """One record: PSNR against dense over the realised mean density."""
    found = {method: sorted(points) for method, points in lines(record["rows"]).items()}
    right = max(points[-1].density for points in found.values())
    height = float("-inf")
    for method, points in sorted(found.items(), key=lambda item: item[1][-1].psnr):
        colour, last = COLOURS.get(method, "#999999"), points[-1]
        x, y, half = zip(*points, strict=True)
        axis.errorbar(x, y, yerr=half, fmt="o-", color=colour, lw=1.8, ms=4, capsize=2)
        height = max(last.psnr, height + LABEL)  # labels stand apart, whatever they name
        axis.annotate(
            method, last[:2], xytext=(right + 0.02, height), textcoords="data", va="center",
            fontsize=8, color=colour, arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.4},
        )  # fmt: skip
    axis.set_xlim(right=right + 0.14)
    tokens = TOKENS.get(record["size"], record["size"])
    axis.set_title(
        f"{tokens} tokens, {len(record['cases'])} clips, {record['device']}", fontsize=10
    )
    axis.set_xlabel("mean density, dense steps included")
    axis.set_ylabel("PSNR against dense, dB (bars: 95 % of the mean)")
    axis.grid(alpha=0.3)


def lines(rows: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """The points of each candidate; a density at the end of its name is no part of it."""
    found = defaultdict(list)
    for row in rows:
        if "psnr_each" in row:
            name, _, end = row["candidate"].rpartition(" ")
            method = name if end.replace(".", "", 1).isdigit() and "." in end else row["candidate"]
            found[method].append(point(row))
    return found


def point(row: dict[str, Any]) -> Point:
    """A row of the record as a point."""
    each = row["psnr_each"]
    return Point(row["mean_density"], mean(each), half_interval(each))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
