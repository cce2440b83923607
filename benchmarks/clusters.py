"""What blocks of unequal size cost: the same share of pairs in equal blocks, and in clusters.

    python benchmarks/clusters.py -o benchmarks/results/clusters_h200.json
    python benchmarks/clusters.py --device cpu --tokens 600 --heads 1 --head-dim 16 \\
        --q-clusters 6 --kv-clusters 20 --rounds 1

Random lists at Wan 14B's shape. ``equal`` are blocks of 128 on the kernel that is made for them;
all others run on the kernel for clusters: of one size that fills tiles, then with keys, queries or
both of sizes whose logarithms are normal, in lists where neighbours are kept no oftener than others
or in runs, as those of the shipped model are (1.9 clusters in the mean), and with means that stand
in for what is skipped. On a GPU that computes them in eight bits, those too, with the quantising.
Candidates take turns in one process, after .1 s of their own each (``settle_ms``). Beside the time
stands what the tiles hold: pairs that are computed over pairs that are asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsparse.bench import kernel_bench
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.triton.chunk_lists import list_chunks
from vidsparse.kernels.triton.packed import CHUNK
from vidsparse.kernels.triton.packed import KEYS as TILE
from vidsparse.kernels.triton.query_tiles import query_tiles
from vidsparse.metrics.latency import take_turns

SETTLE_MS = 100
WHAT = "medians of rounds in which all candidates take turns"


class Kept(NamedTuple):
    """Clusters: how their sizes differ, and how likely the neighbour of a kept one is kept."""

    name: str
    queries: float = 0.0
    keys: float = 0.0
    runs: float = 0.0
    means: bool = False


CASES = (
    Kept("clusters of one size"),
    Kept("keys differ", keys=0.3),
    Kept("queries differ", queries=0.4),
    Kept("both differ", queries=0.4, keys=0.3),
    Kept("both differ, kept in runs", queries=0.4, keys=0.3, runs=0.45),
    Kept("both differ, kept in runs, means", queries=0.4, keys=0.3, runs=0.45, means=True),
)


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    size = (1, args.tokens, args.heads, args.head_dim)
    q, k, v = (torch.randn(size, device=args.device, dtype=dtype).transpose(1, 2) for _ in range(3))
    shape = kernel_bench.Shape(
        name="equal", heads=args.heads, grid=TokenGrid(1, 1, args.tokens), head_dim=args.head_dim
    )
    equal = kernel_bench.random_plan(shape, args.density, TILE, TILE, q.device)
    plans = {"equal": equal} | {case.name: clusters(case, k, v, args) for case in CASES}
    calls: dict[str, Callable[[], object]] = {
        name: partial(attention, q, k, v, plan) for name, plan in plans.items()
    }
    eight = [name for name, plan in plans.items() if not why_not_in_eight_bits(q, k, v, plan)]
    calls |= {f"{n}, int8": partial(attention, q, k, v, plans[n], engine="int8") for n in eight}
    times = take_turns(calls, rounds=args.rounds, device=args.device, settle_ms=SETTLE_MS)
    rows = [row(name, plan, times[name].median) for name, plan in plans.items()]
    for each in rows:
        if each["case"] in eight:
            each["int8_ms"] = times[f"{each['case']}, int8"].median
            print(f"{'in eight bits':34s} {each['int8_ms']:24.2f} ms")
        print(
            f"{each['case']:34s} density {each['density']:.4f} {each['ms']:8.2f} ms, "
            f"{each['ms'] / each['density'] / 100:.3f} a hundredth, computed {each['computed']:.3f}"
        )
    if args.output:
        record = kernel_bench.record(rows, " ".join(sys.argv), WHAT)
        kernel_bench.write(args.output, record)


def why_not_in_eight_bits(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> list[str]:
    return ENGINES["int8"].why_not(Case.of(q, k, v, plan, False))


def clusters(case: Kept, k: Tensor, v: Tensor, args: argparse.Namespace) -> BlockPlan:
    """A random plan of clusters; those of one size fill tiles."""
    rows = args.q_clusters if case.queries else max(1, args.tokens // (4 * TILE))
    columns = args.kv_clusters if case.keys else max(1, args.tokens // TILE)
    shape = 1, args.heads, rows, columns
    keep = torch.rand(shape, device=args.device) < args.density * (1 - case.runs)
    goes_on = torch.rand(shape, device=args.device) < case.runs
    for _ in range(8):  # a run is as long as its neighbours go on: 1 / (1 - runs) in the mean
        keep[..., 1:] |= keep[..., :-1] & goes_on[..., 1:]
    keep[..., 0] = True
    plan = BlockPlan.from_mask(
        keep, q_len=args.tokens, kv_len=args.tokens, q_block=TILE, kv_block=TILE,
        q_offsets=edges(rows, case.queries, args), kv_offsets=edges(columns, case.keys, args),
    )  # fmt: skip
    if not case.means:
        return plan
    pooled = Pooled(
        key=k[:, :, :columns].contiguous(),
        value=v[:, :, :columns].contiguous(),
        size=plan.kv_sizes,
    )
    return dataclasses.replace(plan, pooled=pooled)


def edges(number: int, spread: float, args: argparse.Namespace) -> Tensor:
    """Where clusters start: of one size in whole tiles, or of random ones; the last takes all."""
    if not spread:
        width = args.tokens // number // TILE * TILE or args.tokens // number
        ends = torch.arange(1, number + 1, device=args.device).expand(1, args.heads, -1) * width
    else:
        size = torch.randn(1, args.heads, number, device=args.device).mul(spread).exp()
        ends = (size.cumsum(-1) / size.sum(-1, keepdim=True) * args.tokens).round()
    ends = ends.int().contiguous()
    ends[..., -1] = args.tokens
    return torch.nn.functional.pad(ends, (1, 0))


def row(name: str, plan: BlockPlan, ms: float) -> dict[str, Any]:
    density = plan.density
    found = {"case": name, "density": density, "ms": ms}
    if plan.kv_offsets is None:
        return found | {"computed": 1.0}
    batch, heads = plan.kv_count.shape[:2]
    chunks = list_chunks(plan, CHUNK, TILE // CHUNK)
    tiles, total = query_tiles(plan, chunks, batch, heads, TILE)
    start, end, count = tiles[: int(total)].long()[:, [2, 3, 5]].unbind(-1)
    rows = torch.where(end - start > TILE // 2, TILE, TILE // 2)  # half a tile takes half as long
    pairs = (rows * ((count * CHUNK + TILE - 1) // TILE * TILE)).sum()
    computed = float(pairs) / (heads * plan.q_len * plan.kv_len)
    return found | {"computed": computed / density}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=75_600)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.21)
    parser.add_argument("--q-clusters", type=int, default=200)
    parser.add_argument("--kv-clusters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
