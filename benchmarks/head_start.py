"""What a call of attention is timed at alone and after dense calls, and with the host ahead or not.

    python benchmarks/head_start.py > benchmarks/results/head_start_h200.txt

A GPU that waits for the host before the first kernel of what is timed looks slower than in a run,
where the host is ahead; and one that has just run a dense call in 16 bits, near its power limit,
has a slower clock. Both at Wan 14B's shape, random blocks of 128.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.bench import kernel_bench
from vidsparse.kernels.attention import attention
from vidsparse.metrics.latency import HEAD_START, gpu_ms


def main() -> None:
    torch.manual_seed(0)
    shape = next(each for each in kernel_bench.GPU_SHAPES if each.name == "wan-14b-720p")
    q, k, v = kernel_bench._tensors(shape)

    def dense() -> object:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return F.scaled_dot_product_attention(q, k, v)

    for density in (1.0, 0.25, 0.05):
        plan = kernel_bench.random_plan(shape, density, 128, 128, q.device)
        for engine in ("int8", "triton"):
            call = partial(attention, q, k, v, plan, engine=engine)
            print(f"density {density:g}, {engine}: {measured(call, dense)}", flush=True)


def measured(call: Callable[[], object], dense: Callable[[], object]) -> str:
    call()
    call()
    started = time.perf_counter()
    call()
    host = 1e3 * (time.perf_counter() - started)
    said = [f"host {host:.2f} ms"]
    for name, cycles in (("waiting", 0), ("host ahead", HEAD_START)):
        timed = partial(gpu_ms, head_start=cycles)
        alone = median(timed(call) for _ in range(5))
        turns = [(timed(dense), timed(call)) for _ in range(5)]
        before, after = (median(each) for each in zip(*turns, strict=True))
        said.append(f"{name}: alone {alone:.2f}, in turn {after:.2f} with dense {before:.2f}")
    return "; ".join(said)


if __name__ == "__main__":
    main()
