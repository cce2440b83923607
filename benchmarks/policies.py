"""What deciding costs with whole policies, and what they remember, at the Wan-14B shape.

    python benchmarks/policies.py -o benchmarks/results/policies_h200.json

One attention layer, 40 heads x 75,600 tokens x 128 in bf16, random data: the time from q, k and v
to a plan and tensors in its order (everything but the attention itself), as a share of the dense
attention it replaces, the attention itself, and the bytes a layer remembers, as computed from
shapes, held and allocated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from planning import dense
from torch import Tensor

from vidsparse.bench import kernel_bench
from vidsparse.dial import full_density
from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.metrics.latency import Timing, take_turns
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.work import Work
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.state import LayerState

GRID, HEADS, HEAD_DIM = TokenGrid(21, 45, 80), 40, 128
LAYERS, BRANCHES = 40, 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "draft": ("draft", {"density": 0.25}),
    "sub-block": ("draft", {"density": 0.25, "estimator": "subblock"}),
    "balanced": ("balanced", {}),
    "balanced, 4 x 4 parts": ("balanced", {"parts": 16}),
    "balanced, by the errors of means": (
        "balanced",
        {"estimator": "routing", "compensation": "centroid"},
    ),
    "svg2": ("svg2", {}),
    "svg2, one budget": ("svg2", {"density": 0.25}),
    "svg2-ear": ("svg2-ear", {}),
    "semantic": ("semantic", {}),
    "semantic, 100 x 500": ("semantic", {"q_clusters": 100, "kv_clusters": 500}),
    "auto": ("auto", {"tolerance": 0.5}),
    "svg": ("svg", {}),
    "lite": ("lite", {}),
    "adaspa with sub-blocks": ("adaspa", {"estimator": "subblock"}),
}


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    made = [torch.randn(1, GRID.tokens, HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in "qkv"]
    q, k, v = (x.transpose(1, 2) for x in made)
    steps, rows = {"dense": dense(q, k, v)}, []
    chosen = args.cases.split(";") if args.cases else CASES
    for name in chosen:
        preset, changes = CASES[name]
        try:
            layer = Layer((q, k, v), preset, changes)
            facts = layer.facts()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        steps[f"{name}: plan"], steps[f"{name}: again"] = layer.plan, layer.again
        steps[f"{name}: reuse"], steps[f"{name}: attend"] = layer.reuse, layer.attend
        rows.append({"case": name, "preset": preset, **facts})
    times = take_turns(steps, rounds=args.rounds, device="cuda", at_least_ms=20.0)
    for row in rows:
        row |= costs(times, row)
        print(
            f"{row['case']:24s} plan {row['plan']:6.2%} again {row['again']:6.2%} "
            f"reuse {row['reuse']:6.2%} a call {row['share_of_dense']:6.2%}   "
            f"attend {row['attend']:6.1%} at {row['density']:.3f}   "
            f"a run remembers {row['run_bytes'] / 1e6:6.1f} MB, {row['layer_bytes']:,} computed, "
            f"{row['held_bytes']:,} held, {row['allocated_bytes']:,} allocated; "
            f"on the host {row['run_host_bytes'] / 1e6:.1f} MB, {row['layer_host_bytes']:,} "
            f"computed, {row['held_host_bytes']:,} held",
            flush=True,
        )
    rows.append({"case": "dense", "ms": times["dense"].median})
    if args.output:
        kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv)))


def costs(times: dict[str, Timing], row: dict[str, Any]) -> dict[str, float]:
    """Shares of dense attention; ``share_of_dense`` is the mean over the calls of two branches.

    Of a cycle of ``replan`` steps, the first plans and the others use the plan again; at each, the
    second branch does what the first did.
    """
    whole = times["dense"].median
    parts = {
        name: times[f"{row['case']}: {name}"].median / whole
        for name in ("plan", "again", "reuse", "attend")
    }
    cycle = parts["plan"] + (row["replan"] - 1) * parts["reuse"] + row["replan"] * parts["again"]
    return parts | {"share_of_dense": cycle / (2 * row["replan"])}


class Layer:
    """One layer of a run: makes a plan at a new step, and uses it again."""

    def __init__(self, qkv: tuple[Tensor, ...], name: str, changes: dict[str, Any]) -> None:
        block = {"block": 128} if "block" in PRESETS[name].override(changes).parameters() else {}
        self.preset = PRESETS[name].override(block | changes)
        self.block = self.preset.policy.block_on("cuda", GRID.tokens, qkv[0].shape[-1])
        policy, run = self.preset.policy, Progress.first(50)
        dial = policy.mean_density is not None
        self.density = full_density(self.preset, run) if dial else policy.density
        self.planner = Planner(self.preset.policy, self.preset.schedule.replan)
        self.reusing = Planner(self.preset.policy, 1 << 30)
        self.own, self.shared = LayerState(), LayerState()
        self.qkv, self.step = qkv, 0
        self.work = self.plan()  # the first is cold

    def inputs(self, state: LayerState) -> Inputs:
        q, k, v = self.qkv
        return Inputs(
            blocks=Blocks(GRID, self.block, q.device),
            q=q, k=k, v=v, scale=HEAD_DIM**-0.5, heads=HEADS, step=self.step, density=self.density,
            state=state, shared=self.shared, remember=True,
        )  # fmt: skip

    def plan(self) -> Work:
        """The first branch of a step that plans."""
        self.step += self.preset.schedule.replan
        self.work = self.planner.work(self.inputs(self.own), 1.0)
        return self.work

    def again(self) -> Work:
        """The other branch of a step."""
        return self.planner.work(self.inputs(self.own), 1.0)

    def reuse(self) -> Work:
        """The first branch of a step that keeps an older plan, checked if the policy checks it."""
        self.step += 1
        return self.reusing.work(self.inputs(self.own), 1.0)

    def attend(self) -> object:
        """What was planned."""
        work = self.work
        return attention(*work.inputs.qkv, work.plan, scale=work.inputs.scale)

    def facts(self) -> dict[str, Any]:
        """What it remembers: computed from shapes, held, and given back by the allocator."""
        self.plan()
        density = float(self.work.head_density().mean())
        torch.cuda.synchronize()
        held = self.own.nbytes() + self.shared.nbytes()
        before = torch.cuda.memory_allocated()
        tensors = [*self.own.tensors.values(), *self.shared.tensors.values()]
        copies = [x.clone() for x in tensors]
        allocated = torch.cuda.memory_allocated() - before
        del copies
        layer, parked = (
            layer_state_bytes(self.preset, GRID, HEADS, HEAD_DIM, itemsize=2, on_host=on_host)
            for on_host in (False, True)
        )
        return {
            "replan": self.preset.schedule.replan,
            "density": density,
            "remembers": [*self.own.tensors, *self.shared.tensors],
            "layer_bytes": sum(layer),
            "held_bytes": held,
            "allocated_bytes": allocated,
            "run_bytes": layer.of_run(LAYERS, BRANCHES),
            "layer_host_bytes": sum(parked),
            "held_host_bytes": self.own.host_nbytes() + self.shared.host_nbytes(),
            "run_host_bytes": parked.of_run(LAYERS, BRANCHES),
        }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="some of them, separated by semicolons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
