"""What planning costs on a GPU, as a share of the dense attention it saves.

    python benchmarks/planning.py -o benchmarks/results/planning_h200.json

At the Wan-14B shape (40 heads x 75,600 tokens x 128, bf16, random data): pooled scores and
selection, value-aware scores, antidiagonal scores, a warm k-means step with both permutations, and
a plan with and without a token order of its own. Dense attention and every candidate, replayed as a
CUDA graph, take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vidsparse.bench import kernel_bench
from vidsparse.comparison.baselines import CUDNN, FLASH_4, dense_calls, runs
from vidsparse.kernels.attention import attention
from vidsparse.kernels.planning.antidiagonal import antidiagonal_scores
from vidsparse.kernels.planning.block_scores import block_mass, block_value_error
from vidsparse.kernels.planning.kmeans import kmeans
from vidsparse.kernels.planning.permute import order_by_label, permute_tokens, unpermute_tokens
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks
from vidsparse.kernels.planning.select import select_top_k
from vidsparse.metrics.latency import take_turns

HEADS, TOKENS, HEAD_DIM, BLOCK = 40, 75_600, 128, 128
SCALE = HEAD_DIM**-0.5


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    made = [torch.randn(1, TOKENS, HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in range(3)]
    q, k, v = (x.transpose(1, 2) for x in made)
    candidates = {**planning(q, k, v), **clustering(q, k, v), **orders(q, k, v)}
    replays = {name: captured(function) for name, function in candidates.items()}
    times = take_turns(
        {"dense": dense(q, k, v), **replays}, rounds=args.rounds, device="cuda", at_least_ms=20.0
    )
    rows = []
    for name, timing in times.items():
        share = timing.median / times["dense"].median
        rows.append({"what": name, "ms": timing.median, "ms_iqr": timing.spread, "share": share})
        print(f"{name:44s} {timing.median:9.3f} ms  {share:7.2%} of dense", flush=True)
    for name in candidates:
        extra = kernel_bench.peak_bytes(candidates[name])
        rows.append({"what": name, "peak_bytes": extra})
        print(f"{name:44s} {extra / 2**20:9.1f} MiB at its peak", flush=True)
    if args.output:
        kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv)))


def captured(function: Callable[[], object]) -> Callable[[], None]:
    """The function as a CUDA graph: many small launches cost a busy host more than the device."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def dense(q, k, v) -> Callable[[], object]:
    calls = dense_calls(q, k, v)
    return calls[FLASH_4] if runs(calls[FLASH_4]) else calls[CUDNN]


def planning(q, k, v) -> dict[str, Callable[[], object]]:
    sizes = {n: part_sizes(TOKENS, BLOCK, n, "cuda") for n in (1, 4)}
    kept = round(0.25 * len(sizes[1]))

    def mass(parts: int):
        query, key = (pool_blocks(x, BLOCK, parts=parts, dtype=x.dtype) for x in (q, k))
        if parts == 1:
            query, key = query[:, :, :, None], key[:, :, :, None]
        return block_mass(query, key, sizes[parts], sizes[parts], scale=SCALE)

    def value_error():
        return block_value_error(mass(4), pool_blocks(v, BLOCK))

    scores = mass(1)
    return {
        "pool one tensor": lambda: pool_blocks(q, BLOCK),
        "pooled scores": lambda: mass(1),
        "top-k to lists": lambda: select_top_k(scores, kept),
        "pooled scores + top-k": lambda: select_top_k(mass(1), kept),
        "4x4 sub-block mass + top-k": lambda: select_top_k(mass(4), kept),
        "4x4 value error + top-k": lambda: select_top_k(value_error(), kept),
        "antidiagonal, stride 8": lambda: antidiagonal_scores(
            q, k, block=BLOCK, stride=8, scale=SCALE
        ),
    }


def clustering(q, k, v) -> dict[str, Callable[[], object]]:
    start = {name: kmeans(x, n, iterations=2) for name, x, n in (("q", q, 100), ("k", k, 500))}

    def cluster(name: str, x, number: int):
        return kmeans(x, number, iterations=2, centroids=start[name].centroids)

    q_order = start["q"].order

    def everything() -> None:
        for name, x, number, copied in (("q", q, 100, (q,)), ("k", k, 500, (k, v))):
            order = cluster(name, x, number).order
            copies = [permute_tokens(tensor, order) for tensor in copied]
            if name == "q":  # the output goes the way back
                unpermute_tokens(copies[0], order, like=q)

    return {
        "k-means, 100 clusters of q, 2 iterations": lambda: cluster("q", q, 100),
        "k-means, 500 clusters of k, 2 iterations": lambda: cluster("k", k, 500),
        "order by label, 500 clusters": lambda: order_by_label(start["k"].labels, 500),
        "permute one tensor": lambda: permute_tokens(q, q_order),
        "un-permute one tensor": lambda: unpermute_tokens(v, q_order, like=q),
        "k-means warm step + all permutations": everything,
    }


def orders(q, k, v) -> dict[str, Callable[[], object]]:
    """A plan with and without an order of its own, whose copies are made each time."""
    shape = kernel_bench.GPU_SHAPES[1]
    plan = kernel_bench.random_plan(shape, 0.25, BLOCK, BLOCK, q.device)
    order = torch.rand(1, HEADS, TOKENS, device="cuda").argsort(dim=-1).int()

    def in_order() -> None:
        query, key, value = (permute_tokens(x, order) for x in (q, k, v))
        out = attention(query, key, value, plan, engine="triton")
        unpermute_tokens(out, order, like=q)

    return {
        "density 0.25, no order": lambda: attention(q, k, v, plan, engine="triton"),
        "density 0.25, order and copies": in_order,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
