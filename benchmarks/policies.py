"""What deciding costs with whole policies, and what they remember, at the Wan-14B shape.

    python benchmarks/policies.py -o benchmarks/results/policies_h200.json

One attention layer, 40 heads x 75,600 tokens x 128 in bf16, random data: the time from q, k and v
to a plan and tensors in its order (everything but the attention itself), as a share of the dense
attention it replaces, and the bytes a layer remembers, as computed from shapes and as allocated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from planning import dense

from vidsparse.cli import kernel_bench
from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.metrics.latency import take_turns
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.presets import PRESETS

GRID, HEADS, HEAD_DIM = TokenGrid(21, 45, 80), 40, 128
LAYERS, BRANCHES = 40, 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "draft": ("draft", {"density": 0.25}),
    "sub-block": ("draft", {"density": 0.25, "estimator": "subblock"}),
    "balanced": ("balanced", {}),
    "balanced, 4 x 4 parts": ("balanced", {"parts": 4}),
    "svg2": ("svg2", {}),
    "semantic, 100 x 500, one budget": ("svg2", {"density": 0.25}),
    "svg": ("svg", {}),
    "auto, 4 x 4 parts": ("auto", {"mass": "subblock"}),
    "lite": ("lite", {}),
    "adaspa, planned before": ("adaspa", {"estimator": "subblock"}),
}


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    made = [torch.randn(1, GRID.tokens, HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in "qkv"]
    q, k, v = (x.transpose(1, 2) for x in made)
    steps, rows = {"dense": dense(q, k, v)}, []
    for name, (preset, changes) in CASES.items():
        try:
            steps[name], facts = planning(q, k, v, preset, changes)
            rows.append({"case": name, "preset": preset, **facts})
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    times = take_turns(steps, rounds=args.rounds, device="cuda", at_least_ms=20.0)
    for row in rows:
        row["ms"] = times[row["case"]].median
        row["share_of_dense"] = row["ms"] / times["dense"].median
        print(
            f"{row['case']:34s} {row['ms']:8.2f} ms {row['share_of_dense']:7.2%} of dense   "
            f"a run remembers {row['run_bytes'] / 1e6:6.1f} MB, "
            f"a layer {row['layer_bytes']:,} computed, {row['allocated_bytes']:,} allocated",
            flush=True,
        )
    rows.append({"case": "dense", "ms": times["dense"].median})
    if args.output:
        kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv)))


def planning(q, k, v, name: str, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """One warm planning step, and what it remembers."""
    preset = PRESETS[name].override({"block": 128, **changes})
    planner = Planner(preset.policy, preset.schedule.replan)
    state = planner.state("a layer")
    step = 0

    def work() -> object:
        nonlocal step
        inputs = Inputs(
            blocks=Blocks(GRID, preset.policy.block, q.device),
            q=q, k=k, v=v, scale=HEAD_DIM**-0.5, heads=HEADS, step=step, state=state,
        )  # fmt: skip
        step += 1
        return planner.work(inputs, 1.0)

    work()  # the first is cold
    torch.cuda.synchronize()
    work()
    before = torch.cuda.memory_allocated()
    names = list(state.tensors)
    held = sum(x.nbytes for x in state.tensors.values())
    state.tensors.clear()
    allocated = before - torch.cuda.memory_allocated()
    state.steps.clear()
    work()
    layer = layer_state_bytes(preset, GRID, HEADS, HEAD_DIM, itemsize=2)
    facts = {
        "remembers": names,
        "layer_bytes": layer,
        "held_bytes": held,
        "allocated_bytes": allocated,
        "run_bytes": layer * LAYERS * BRANCHES,
    }
    return work, facts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
