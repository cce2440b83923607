"""Presets at equal time: fidelity where a whole run of each takes as long as one of ``draft``.

    python benchmarks/ladder.py quality --set "presets at length" --levels 0.35,0.25,0.15 \\
        --ramps 0.3,0.2,0.1 --schedule '{"warmup":0.05,"dense_layers":0}' -o quality.json
    python benchmarks/ladder.py calls --set "presets at length" --densities 0.1,0.3 -o calls.json
    python benchmarks/equal_time.py quality.json calls.json \\
        benchmarks/results/whole_run_wan-14b_h200.json --as-long-as 0.3,0.25

A run's time is predicted as ``ladder.py table`` does it, by the line through the calls that were
timed. Between two densities a clip's PSNR is taken to be linear in the time; outside of those that
were drawn nothing is said but which side it is. ± is the 95 % t-interval over clips, of pairs where
presets are compared.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import ladder
import numpy as np
from intervals import half_interval

SHAPE = "wan-14b-720p"
Curve = list[tuple[float, list[float]]]
"""Of one preset, from the fastest: a layer's milliseconds, and the PSNR of each clip."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="quality (several), calls, whole run")
    parser.add_argument("--as-long-as", default="0.3", help="mean densities of draft")
    args = parser.parse_args()
    *quality, calls, whole = (json.loads(path.read_text()) for path in args.files)
    stock = whole["rows"][0]["ms_a_layer"]
    curves = curves_of([row for each in quality for row in each["rows"]], calls, stock)
    for level in (float(text) for text in args.as_long_as.split(",")):
        show(curves, time_of(quality, curves["draft"], level), stock)


def curves_of(rows: list[dict[str, Any]], calls: dict[str, Any], stock: float) -> dict[str, Curve]:
    """Every preset whose calls were timed."""
    lines = dict(ladder.lines(calls, SHAPE))
    dense = calls["dense"][SHAPE]
    found: dict[str, Curve] = {}
    for row in rows:
        if "error" not in row and row["candidate"] in lines:
            ms = ladder.layer_ms(row, lines[row["candidate"]], dense, stock)
            found.setdefault(row["candidate"], []).append((ms, row["psnr_each"]))
    return {name: sorted(curve) for name, curve in found.items()}


def time_of(quality: list[dict[str, Any]], draft: Curve, level: float) -> float:
    """Milliseconds of a layer of ``draft`` at a mean density."""
    rows = [row for each in quality for row in each["rows"] if row["candidate"] == "draft"]
    densities = sorted(row["mean_density"] for row in rows)
    return float(np.interp(level, densities, [ms for ms, _ in draft]))


def at(curve: Curve, ms: float) -> list[float] | str:
    """PSNR of each clip at a time, or which side of the curve it is on."""
    for (fast, before), (slow, after) in pairwise(curve):
        if fast <= ms <= slow:
            share = (ms - fast) / (slow - fast) if slow > fast else 0.0
            return [a + share * (b - a) for a, b in zip(before, after, strict=True)]
    return "slower at every density" if ms < curve[0][0] else "faster at every density"


def show(curves: dict[str, Curve], ms: float, stock: float) -> None:
    """A table, the nearest to dense first."""
    found = {name: at(curve, ms) for name, curve in curves.items()}
    drawn = {name: each for name, each in found.items() if not isinstance(each, str)}
    print(f"\nAs long as draft, {stock / ms:.2f}x stock:\n")
    print("| | PSNR, dB | above `draft` | above `random` |\n|---|---|---|---|")
    for name, each in sorted(drawn.items(), key=lambda item: -mean(item[1])):
        beside = [
            interval([a - b for a, b in zip(each, drawn[other], strict=True)], "+")
            if other in drawn and other != name
            else ""
            for other in ("draft", "random")
        ]
        print(f"| `{name}` | {interval(each)} | {beside[0]} | {beside[1]} |")
    for name, why in found.items():
        if isinstance(why, str):
            print(f"| `{name}` | {why} | | |")


def interval(each: list[float], sign: str = "") -> str:
    """The mean and half of its 95 % t-interval."""
    return f"{mean(each):{sign}.1f} ± {half_interval(each):.1f}"


if __name__ == "__main__":
    main()
