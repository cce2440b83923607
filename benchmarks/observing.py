"""What observing blocks and searching by exact mass cost, beside attention, at Wan 14B's shape.

    python benchmarks/observing.py -o observing.json

Each kernel three times in turn, the last two timed; the order turns every round, since a card near
its power limit favours what comes after a rest. Median, least and most milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.observe import Observed
from vidsparse.kernels.engines.triton import observe_triton, triton_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.exact_mass import exact_mass

HEADS, TOKENS, HEAD_DIM, BLOCK = 40, 75_600, 128, 128
SCALE = HEAD_DIM**-0.5


def main() -> None:
    args = parse()
    shape = 1, TOKENS, HEADS, HEAD_DIM
    q, k, v = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in "qkv"
    )

    def search() -> tuple[torch.Tensor, torch.Tensor]:
        return exact_mass(q, k, q_block=BLOCK, kv_block=BLOCK, scale=SCALE)

    found = {
        "search": clock(
            {"cudnn": lambda: scaled_dot_product_attention(q, k, v), "exact mass": search}
        )
    }
    for density in (1.0, 0.35, 0.25, 0.05):
        plan = random_plan(density)

        def attend(plan: BlockPlan = plan) -> object:
            return triton_attention(q, k, v, plan, scale=SCALE)

        def observe(plan: BlockPlan = plan) -> Observed:
            return observe_triton(q, k, v, plan, scale=SCALE)

        def in_eight_bits(plan: BlockPlan = plan) -> object:
            return low_bit_attention(q, k, v, plan, scale=SCALE)

        kernels = {"bf16": attend, "bf16 observed": observe, "int8": in_eight_bits}
        found[f"attention {density}"] = clock(kernels)
    record = {"device": torch.cuda.get_device_name(), "torch": torch.__version__} | found
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def random_plan(density: float) -> BlockPlan:
    number = -(-TOKENS // BLOCK)
    keep = torch.rand(1, HEADS, number, number, device="cuda") < density
    keep[..., 0] = True
    return BlockPlan.from_mask(keep, q_len=TOKENS, kv_len=TOKENS, q_block=BLOCK, kv_block=BLOCK)


def clock(kernels: dict[str, Callable[[], object]], rounds: int = 6) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for turn in range(rounds):
        for name in list(kernels)[:: -1 if turn % 2 else 1]:
            kernels[name]()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            kernels[name]()
            kernels[name]()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / 2)
    return {name: [median(each), min(each), max(each)] for name, each in times.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
