"""The ``cpu`` engine against torch's dense attention, at the shapes of the shipped pipeline.

    python benchmarks/cpu_engine.py -o benchmarks/results/cpu_engine.json

Candidate and baseline take turns; the ratio is of medians, in one process. Before timing, the
engine is compared with the reference.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.kernels.engines.cpu import cpu_attention
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled

HEADS, HEAD_DIM, BLOCK = 4, 64, 64
GRIDS = ("7x12x12", "7x16x16", "7x20x20", "9x22x22", "13x32x32")
DENSITIES = (0.5, 0.25, 0.1)


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    rows = [row for grid in GRIDS for row in run_grid(TokenGrid.parse(grid), args.repeats)]
    record = {
        "command": " ".join(sys.argv),
        "shape": f"1 x {HEADS} heads x tokens x {HEAD_DIM}, float32, block {BLOCK}, top_k plans",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def run_grid(grid: TokenGrid, repeats: int) -> list[dict[str, Any]]:
    q, k, v = (torch.randn(1, grid.tokens, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(3))
    inputs = Inputs(
        blocks=Blocks(grid, BLOCK, q.device), q=q, k=k, scale=HEAD_DIM**-0.5, heads=HEADS
    )
    scale = HEAD_DIM**-0.5
    policy = Policy(estimator=Pooled(), density=DENSITIES[0], block=BLOCK)

    def plan(density: float) -> BlockPlan:
        anew = dataclasses.replace(inputs)  # block means are part of the price
        return policy.plan(policy.estimator.estimate(anew), anew, density=density)

    def dense() -> None:
        F.scaled_dot_product_attention(q, k, v)

    rows = []
    for density in DENSITIES:
        made = plan(density)
        if grid.tokens < 5_000:
            expected, _ = reference_attention(q, k, v, made)
            torch.testing.assert_close(cpu_attention(q, k, v, made, scale=scale)[0], expected)

        def sparse(density: float = density) -> None:  # planning is part of the price
            cpu_attention(q, k, v, plan(density), scale=scale)

        dense_s, sparse_s = take_turns(dense, sparse, repeats)
        rows.append(
            {
                "tokens": grid.tokens,
                "density": made.density,
                "dense_ms": 1e3 * dense_s,
                "sparse_ms": 1e3 * sparse_s,
                "speedup": dense_s / sparse_s,
            }
        )
        print(
            f"{grid.tokens:6d} tokens  density {made.density:.3f}  dense {1e3 * dense_s:7.1f} ms  "
            f"sparse {1e3 * sparse_s:7.1f} ms  {dense_s / sparse_s:.2f}x",
            flush=True,
        )
    return rows


def take_turns(a: Callable[[], None], b: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Median seconds of each, measured alternately after one call each."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for function, into in zip((a, b), times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
