"""How long the host takes to start a call in a session, beside what the GPU then does.

    python benchmarks/host_time.py -o benchmarks/results/host_time_h200.json

Calls of four layers on a sequence so short that the GPU waits for the host: what a call takes is
then what the host does, in Python and in the driver. Beside it stand the time of the GPU's kernels
and how many there are, by torch's profiler.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from session_calls import never
from torch import Tensor
from torch._C._autograd import DeviceType

from vidsparse.bench import kernel_bench
from vidsparse.grid import TokenGrid
from vidsparse.presets import find_preset
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

LAYERS = 4
WHAT = "means over calls at full sparsity that nothing waits for"


def main() -> None:
    args = parse()
    grid = TokenGrid.parse(args.grid)
    size = (1, grid.tokens, args.heads, args.head_dim)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    qkv = [torch.randn(size, device=args.device, dtype=dtype) for _ in "qkv"]
    rows = []
    for name in args.presets.split(","):
        rows.append(measure(name, qkv, grid, args.calls))
        print(rows[-1], flush=True)
    if args.output:
        kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv), WHAT))


@torch.inference_mode()
def measure(name: str, qkv: list[Tensor], grid: TokenGrid, calls: int) -> dict[str, Any]:
    preset, _, precision = name.partition(":")
    changes = {"min_tokens": 0} | ({"precision": precision} if precision else {})
    engine = SparseAttention(find_preset(preset).override(changes), strict=True)

    def run(number: int, first: int) -> None:
        q, k, v = qkv
        for i in range(number):
            call = Call(
                grid=grid, layer=i % LAYERS, layers=LAYERS, step=first + i // LAYERS,
                progress=Progress.alone(0.5),
            )  # fmt: skip
            engine(q, k, v, call, never)

    run(2 * LAYERS, 0)  # compiles
    started = time.perf_counter()
    run(calls, 2)
    ms = 1e3 * (time.perf_counter() - started) / calls
    row = {"preset": name, "tokens": grid.tokens, "host_ms": ms}
    if not qkv[0].is_cuda:
        return row
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        run(LAYERS, 1_000)
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
    return row | {
        "gpu_ms": sum(event.device_time_total for event in kernels) / 1e3 / LAYERS,
        "kernels": sum(event.count for event in kernels) / LAYERS,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=kernel_bench.device())
    parser.add_argument("--presets", default="balanced,fast,balanced:int8")
    parser.add_argument("--grid", default="8x20x30")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
