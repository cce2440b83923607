"""The engines of CPUs against torch's dense attention, at the shapes of the shipped pipeline.

    python benchmarks/cpu_engine.py -o benchmarks/results/cpu_engine.json

All take turns in one process, forwards and then backwards; a speed-up is the median of the ratios
of one turn. Before timing, each engine is compared with the reference. ``native`` is compiled here;
``cpu`` gathers keys and is what runs where there is no compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.threads import one_thread
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled

HEADS, HEAD_DIM, BLOCK = 4, 64, 64
GRIDS = ("7x12x12", "7x16x16", "7x20x20", "9x22x22", "13x32x32")
DENSITIES = (0.5, 0.25, 0.1)
ENGINES = ("native", "cpu")


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    began, rows = os.getloadavg()[0], []
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for grid in args.grid or GRIDS:
            rows += run_grid(TokenGrid.parse(grid), args.repeats, args.engine or list(ENGINES))
    record = {
        "command": " ".join(sys.argv),
        "shape": f"1 x {HEADS} heads x tokens x {HEAD_DIM}, float32, block {BLOCK}, top_k plans",
        "cpu": cpu_name(),
        "load_average": [began, os.getloadavg()[0]],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def run_grid(grid: TokenGrid, repeats: int, engines: Sequence[str]) -> list[dict[str, Any]]:
    q, k, v = (torch.randn(1, grid.tokens, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(3))
    inputs = Inputs(
        blocks=Blocks(grid, BLOCK, q.device), q=q, k=k, scale=HEAD_DIM**-0.5, heads=HEADS
    )
    policy = Policy(estimator=Pooled(), density=DENSITIES[0], block=BLOCK)

    def plan(density: float) -> BlockPlan:
        anew = dataclasses.replace(inputs)  # block means are part of the price
        with one_thread(q):  # as in a session
            return policy.plan(policy.estimator.estimate(anew), anew, density=density)

    def sparse(density: float, engine: str) -> None:
        attention(q, k, v, plan(density), engine=engine)

    rows = []
    for density in DENSITIES:
        made = plan(density)
        if grid.tokens < 5_000:
            expected, _ = reference_attention(q, k, v, made)
            for engine in engines:
                torch.testing.assert_close(attention(q, k, v, made, engine=engine), expected)
        dense = {"dense": partial(F.scaled_dot_product_attention, q, k, v)}
        candidates = dense | {engine: partial(sparse, density, engine) for engine in engines}
        times = take_turns(candidates, repeats)
        row = {
            "tokens": grid.tokens,
            "density": made.density,
            "threads": torch.get_num_threads(),
            "dense_ms": 1e3 * statistics.median(times["dense"]),
        }
        for engine in engines:
            ratios = [d / s for d, s in zip(times["dense"], times[engine], strict=True)]
            row[f"{engine}_ms"] = 1e3 * statistics.median(times[engine])
            row[f"{engine}_speedup"] = statistics.median(ratios)
        rows.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return rows


def take_turns(
    candidates: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each, turn by turn, after one call each."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        names = list(candidates)[:: 1 if turn % 2 else -1]
        for name in names:
            start = time.perf_counter()
            candidates[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--grid", action="append", help=f"repeatable; by default {GRIDS}")
    parser.add_argument("--engine", action="append", help=f"repeatable; by default {ENGINES}")
    parser.add_argument("--threads", type=int, action="append", help="repeatable")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
