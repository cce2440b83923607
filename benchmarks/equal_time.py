"""Presets at equal time: fidelity where a whole run of each takes as long as one of another.

    python benchmarks/ladder.py quality --set "presets at length" --levels 0.35,0.25,0.15 \\
        --ramps 0.3,0.2,0.1 --schedule '{"warmup":0.05,"dense_layers":0}' -o quality.json
    python benchmarks/ladder.py calls --set "presets at length" --densities 0.1,0.3 -o calls.json
    python benchmarks/equal_time.py quality.json calls.json \\
        benchmarks/results/whole_run_wan-14b_h200.json --as-long-as draft:0.3,draft:0.25

A run's time is predicted as ``ladder.py table`` does it, by the line through the calls that were
timed. Between two densities a clip's PSNR is taken to be linear in the time; outside of those that
were drawn nothing is said but which side it is, and what its nearest end is. ± is the 95 %
t-interval over clips, of pairs where presets are compared.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import ladder
import numpy as np
from intervals import half_interval

SHAPE = "wan-14b-720p"
Curve = list[tuple[float, list[float]]]
"""Of one preset, from the fastest: a layer's milliseconds, and the PSNR of each clip."""


class Records(NamedTuple):
    """What the files hold: clips, timed calls, and a layer's milliseconds in stock diffusers."""

    rows: list[dict[str, Any]]
    calls: list[dict[str, Any]]
    stock: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="quality and calls, and a whole run")
    parser.add_argument("--as-long-as", default="draft:0.3", help="CANDIDATE:MEAN_DENSITY, several")
    parser.add_argument("--beside", default="draft,random", help="candidates to compare with")
    parser.add_argument("--only", default="", help="some candidates, separated by semicolons")
    args = parser.parse_args()
    records = read(args.files)
    curves = curves_of(records)
    names = args.only.split(";") if args.only else list(curves)
    times = [
        time_of(records, curves, name, float(density))
        for name, density in (text.split(":") for text in args.as_long_as.split(","))
    ]
    show({each: curves[each] for each in names}, times, records.stock, args.beside.split(","))


def read(files: list[Path]) -> Records:
    """Files of ``ladder.py`` quality and calls, and of ``whole_runs.py``, in any order."""
    found = [json.loads(path.read_text()) for path in files]
    rows = [row for each in found if "floors" in each for row in each["rows"]]
    (whole,) = [each for each in found if "floors" not in each and "dense" not in each]
    calls = [each for each in found if "dense" in each]
    return Records(rows, calls, whole["rows"][0]["ms_a_layer"])


def curves_of(records: Records) -> dict[str, Curve]:
    """Every candidate whose calls were timed."""
    lines: dict[str, tuple[float, float]] = {}
    for calls in reversed(records.calls):
        lines |= dict(ladder.lines(calls, SHAPE))
    dense = records.calls[0]["dense"][SHAPE]
    found: dict[str, Curve] = {}
    for row in records.rows:
        if "error" not in row and row["candidate"] in lines:
            ms = ladder.layer_ms(row, lines[row["candidate"]], dense, records.stock)
            found.setdefault(row["candidate"], []).append((ms, row["psnr_each"]))
    return {name: sorted(curve) for name, curve in found.items()}


def time_of(records: Records, curves: dict[str, Curve], name: str, density: float) -> float:
    """Milliseconds of a layer of a candidate at a mean density."""
    rows = [row for row in records.rows if row["candidate"] == name]
    densities = sorted(row["mean_density"] for row in rows)
    return float(np.interp(density, densities, [ms for ms, _ in curves[name]]))


def at(curve: Curve, ms: float) -> list[float] | None:
    """PSNR of each clip at a time; None outside of the curve."""
    for (fast, before), (slow, after) in pairwise(curve):
        if fast <= ms <= slow:
            share = (ms - fast) / (slow - fast) if slow > fast else 0.0
            return [a + share * (b - a) for a, b in zip(before, after, strict=True)]
    return None


def outside(curve: Curve, ms: float, stock: float) -> str:
    """On which side of a curve a time is, and what its end there is."""
    (fast, least), (slow, most) = curve[0], curve[-1]
    if ms < fast:
        return f"slower: {stock / fast:.2f}x at most, at {mean(least):.1f}"
    return f"faster: {stock / slow:.2f}x at least, at {mean(most):.1f}"


def show(curves: dict[str, Curve], times: list[float], stock: float, beside: list[str]) -> None:
    """A table, the nearest to dense in the first of the times first."""
    above = " | ".join(f"above `{name}`" for name in beside)
    print("| | " + " | ".join(f"{stock / ms:.2f}x: PSNR, dB | {above}" for ms in times) + " |")
    print("|---" * (1 + len(times) * (1 + len(beside))) + "|")
    for name in sorted(curves, key=lambda name: -mean(at(curves[name], times[0]) or [0.0])):
        cells = [cell for ms in times for cell in cells_of(curves, name, ms, stock, beside)]
        print(f"| `{name}` | {' | '.join(cells)} |")


def cells_of(
    curves: dict[str, Curve], name: str, ms: float, stock: float, beside: list[str]
) -> list[str]:
    """What a candidate reaches at a time, and how far that is above others."""
    ours = at(curves[name], ms)
    if ours is None:
        return [outside(curves[name], ms, stock)] + [""] * len(beside)
    cells = [interval(ours)]
    for other in beside:
        theirs = at(curves[other], ms) if other in curves and other != name else None
        pairs = None if theirs is None else zip(ours, theirs, strict=True)
        cells.append("" if pairs is None else interval([a - b for a, b in pairs], "+"))
    return cells


def interval(each: list[float], sign: str = "") -> str:
    """The mean and half of its 95 % t-interval."""
    return f"{mean(each):{sign}.1f} ± {half_interval(each):.1f}"


if __name__ == "__main__":
    main()
