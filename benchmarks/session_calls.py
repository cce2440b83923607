"""What a call costs in a session on a GPU, and how much of that is planning.

    python benchmarks/session_calls.py -o benchmarks/results/session_calls_h200.json

Calls of the engine as a pipeline makes them, at the Wan-14B shape (40 heads x 75,600 tokens x 128,
bf16): at full sparsity, two guidance branches in turn, several steps, nothing waits in between.
Beside them dense attention (cuDNN), in the same process. ``--profile`` adds the kernels that the
calls of one step spend their time in. Queries and keys are of a few hundred kinds with noise, so
that clusters differ in size; what a plan keeps means nothing here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.bench import kernel_bench
from vidsparse.grid import TokenGrid
from vidsparse.presets import find_preset
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.stats import Stats, Stopwatch

BRANCHES = ("cond", "uncond")
KINDS = 300  # of tokens
CASES = {
    "balanced, blocks of 64": ("balanced", {"block": 64}),
    "balanced, blocks of 128": ("balanced", {"block": 128}),
    "draft, blocks of 64": ("draft", {"block": 64}),
    "draft, blocks of 128": ("draft", {"block": 128}),
    "semantic": ("semantic", {}),
}
Tokens = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    grid = TokenGrid.parse(args.grid)
    tokens = {branch: made(grid, args.heads) for branch in BRANCHES}
    rows: list[dict[str, Any]] = []
    for backends in ([SDPBackend.CUDNN_ATTENTION], [SDPBackend.FLASH_ATTENTION]):
        name, ms = f"dense, {backends[0].name.lower()}", dense(tokens["cond"], backends)
        rows.append({"what": name, "ms": ms})
        print(f"{name:28s} {ms:8.2f} ms", flush=True)
    dense_ms = rows[0]["ms"]
    for name in args.cases or CASES:
        row = measure(name, tokens, grid, args.steps)
        row["share"] = row["planning_ms"] / dense_ms
        print(
            f"{name:28s} {row['call_ms']:8.2f} ms a call, planning {row['planning_ms']:6.2f} ms = "
            f"{row['share']:.2%} of dense ({row['planning_ms_cond']:.2f} and "
            f"{row['planning_ms_uncond']:.2f}), density {row['density']:.3f}",
            flush=True,
        )
        rows.append(row)
        if args.profile:
            rows += profiled(name, tokens, grid)
        if args.output:
            kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv), WHAT))


WHAT = "means over the steps of a session, of its two guidance branches in turn; medians of dense"


def made(grid: TokenGrid, heads: int) -> Tokens:
    """q, k and v, ``(1, tokens, heads, 128)``; their kinds lie in patches of the grid."""
    device = kernel_bench.device()
    patch = torch.arange(grid.tokens, device=device) // 8
    kind = (patch * 7919 % 10_007) % KINDS

    def one(spread: float) -> Tensor:
        centres = torch.randn(KINDS, heads, 128, device=device)
        noise = torch.randn(1, grid.tokens, heads, 128, device=device, dtype=torch.bfloat16)
        return (noise + spread * centres[kind].bfloat16()).contiguous()

    return one(0.7), one(0.7), one(0.3)


def dense(tokens: Tokens, backends: list[SDPBackend]) -> float:
    q, k, v = (x.transpose(1, 2) for x in tokens)
    times = []
    with sdpa_kernel(backends if q.is_cuda else [SDPBackend.MATH]):
        for _ in range(5):
            with Stopwatch(q.device) as watch:
                F.scaled_dot_product_attention(q, k, v)
            times.append(watch)
    return 1000 * statistics.median(watch.seconds for watch in times[1:])


def calls(
    engine: SparseAttention, tokens: dict[str, Tokens], grid: TokenGrid, step: int
) -> dict[str, Stats]:
    """One step: a call of each branch, and what was counted of it."""
    counted = {}
    for branch in BRANCHES:
        engine.stats = counted[branch] = Stats()
        where = Call(grid=grid, layer=0, step=step, progress=Progress.alone(0.5), branch=branch)
        engine(*tokens[branch], where, never)
    return counted


def never(*tokens: Tensor) -> Tensor:
    raise AssertionError("a call at full sparsity was dense")


def engine_of(name: str) -> SparseAttention:
    preset, changes = CASES[name]
    return SparseAttention(find_preset(preset).override(changes), strict=True)


def measure(name: str, tokens: dict[str, Tokens], grid: TokenGrid, steps: int) -> dict[str, Any]:
    engine = engine_of(name)
    with torch.inference_mode():
        counted = [calls(engine, tokens, grid, step) for step in range(steps + 2)]
    first, counted = counted[0], counted[2:]  # the first also compiles

    def mean(of: str, *branches: str) -> float:
        return 1000 * statistics.mean(getattr(c[b], of) for c in counted for b in branches)

    return {
        "what": name,
        "call_ms": mean("attention_seconds", *BRANCHES),
        "planning_ms": mean("plan_seconds", *BRANCHES),
        **{f"planning_ms_{branch}": mean("plan_seconds", branch) for branch in BRANCHES},
        "first_planning_ms": 1000 * first["cond"].plan_seconds,
        "density": counted[-1]["cond"].mean_density,
        "device_bytes": counted[-1]["cond"].memory_bytes,
        "host_bytes": counted[-1]["cond"].host_memory_bytes,
    }


def profiled(name: str, tokens: dict[str, Tokens], grid: TokenGrid) -> list[dict[str, Any]]:
    """The kernels of a step, those that take longest first."""
    engine = engine_of(name)
    rows = []
    with torch.inference_mode():
        for step in range(2):
            calls(engine, tokens, grid, step)
        for branch in BRANCHES:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                where = Call(
                    grid=grid, layer=0, step=2, progress=Progress.alone(0.5), branch=branch
                )
                engine(*tokens[branch], where, never)
                torch.cuda.synchronize()
            kernels = [e for e in seen.key_averages() if e.device_type == DeviceType.CUDA]
            kernels.sort(key=lambda e: -e.device_time_total)
            for event in kernels[:24]:
                ms = event.device_time_total / 1000
                print(f"    {branch:7s} {ms:8.3f} ms {event.count:4d} x {event.key[:110]}")
                rows.append(
                    {"what": f"{name}, {branch}: {event.key[:200]}", "ms": ms, "runs": event.count}
                )
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="21x45x80")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cases", nargs="*", choices=CASES)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
