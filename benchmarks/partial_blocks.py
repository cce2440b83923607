"""What blocks cost that are computed in part, beside whole ones: equal lists, one mask more.

    python benchmarks/partial_blocks.py -o partial_blocks.json
    python benchmarks/partial_blocks.py --device cpu --tokens 700 --heads 1 --image 48x48 \\
        --text 20 --image-heads 1 --video 6x34x56 --rounds 2

Random lists at Wan 14B's shape, of which a share is partial with all bits set; the rules of CLEAR
and GNA on an image of FLUX at 2048 x 2048, and those of Radial and FreeSwim on the video of Wan at
720p; each beside the same lists of whole blocks. Plans take turns of 20 ms, after .1 s of their
own: the clock of a card near its power limit is then that which a plan has in a run. Median
milliseconds and the distance of the quartiles.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.partial import plan_of_patterns, with_whole
from vidsparse.metrics.latency import take_turns
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.presets import PRESETS
from vidsparse.versions import versions

BLOCK, WORDS, PATTERNS = 128, 4, 64
AT_LEAST_MS, SETTLE_MS = 20, 100
SHARES = (0.1, 0.5, 1.0)
RULES = {
    "clear": ("clear", {}),
    "clear, blocks of 128": ("clear", {"block": 128, "tile_height": 8, "tile_width": 16}),
    "gna": ("gna", {
        "window_height": 40, "window_width": 40, "stride_height": 16, "stride_width": 16,
        "tile_frames": 1, "tile_height": 16, "tile_width": 8,
    }),
    "radial": ("radial", {"masks": "token"}),
    "freeswim": ("freeswim", {"masks": "token"}),
}  # fmt: skip
VIDEOS = {"radial", "freeswim"}


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    found = {"lists": lists(args), "rules": [rule(args, name) for name in RULES]}
    cuda = args.device == "cuda"
    record = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": versions(),
        "engine": args.engine,
    } | found
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def lists(args: argparse.Namespace) -> dict[str, object]:
    """The same random lists of each head, with more and more partial blocks."""
    number = -(-args.tokens // BLOCK)
    keep = torch.rand(1, args.heads, number, number, device=args.device) < args.density
    keep[..., 0] = True
    drawn = torch.rand(keep.shape, device=args.device)
    which = torch.randint(1, PATTERNS, keep.shape, device=args.device, dtype=torch.int32)
    bits = torch.full((PATTERNS, BLOCK, WORDS), -1, dtype=torch.int32, device=args.device)
    sides: dict[str, Any] = dict.fromkeys(("q_len", "kv_len"), args.tokens)
    sides |= dict.fromkeys(("q_block", "kv_block"), BLOCK)
    plans = {"whole": BlockPlan.from_mask(keep, **sides)}
    for share in SHARES:
        pattern = which.masked_fill((drawn >= share) | ~keep, 0)
        plans[f"{share:.0%} partial"] = plan_of_patterns(keep, pattern, bits, **sides)
    told = {"tokens": args.tokens, "heads": args.heads, "density": plans["whole"].density}
    return told | compared(plans, args.heads, args)


def rule(args: argparse.Namespace, name: str) -> dict[str, object]:
    """The plan of a rule of the geometry, exact and with all its blocks whole."""
    video = name in VIDEOS
    frames, height, width = map(int, (args.video if video else f"1x{args.image}").split("x"))
    grid = TokenGrid(frames, height, width, prefix=0 if video else args.text)
    preset = PRESETS[RULES[name][0]].override(RULES[name][1])
    block = preset.policy.block_on(args.device, grid.tokens, args.head_dim)
    inputs = Inputs(blocks=Blocks(grid, block, torch.device(args.device)))
    start = time.perf_counter()
    exact = Planner(preset.policy).static_plan(inputs, 1.0)
    seconds = time.perf_counter() - start
    whole = with_whole(exact, exact.to_block_mask())
    assert exact.partial is not None
    told = {
        "rule": name,
        "grid": str(grid),
        "block": block,
        "density of blocks": exact.density,
        "density of pairs": preset.policy.estimator.token_density(grid, block),
        "blocks": int(exact.kv_count.sum()),
        "partial": int(exact.partial.count.sum()),
        "patterns": len(exact.partial.bits),
        "seconds to make the plan": seconds,
    }
    heads = args.heads if video else args.image_heads
    return told | compared({"whole": whole, "exact": exact}, heads, args)


def compared(
    plans: dict[str, BlockPlan], heads: int, args: argparse.Namespace
) -> dict[str, object]:
    """Milliseconds of each plan, and how many times as long as ``whole`` it took."""
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    shape = 1, plans["whole"].q_len, heads, args.head_dim
    q, k, v = (torch.randn(shape, device=args.device, dtype=dtype).transpose(1, 2) for _ in "qkv")
    runs: dict[str, Callable[[], object]] = {
        name: partial(attention, q, k, v, plan, engine=args.engine) for name, plan in plans.items()
    }
    times = take_turns(
        runs, rounds=args.rounds, device=args.device, at_least_ms=AT_LEAST_MS, settle_ms=SETTLE_MS
    )
    first = times["whole"].median
    return {
        "milliseconds": {name: (each.median, each.spread) for name, each in times.items()},
        "times whole": {name: each.median / first for name, each in times.items()},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", default="auto", help="triton, flex or another")
    parser.add_argument("--tokens", type=int, default=75_600, help="of the random lists")
    parser.add_argument("--heads", type=int, default=40, help="of the random lists")
    parser.add_argument("--density", type=float, default=0.25, help="of the random lists")
    parser.add_argument("--image", default="128x128", help="tokens of the image, HEIGHTxWIDTH")
    parser.add_argument("--text", type=int, default=512, help="tokens before the image")
    parser.add_argument("--video", default="21x45x80", help="tokens, FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--image-heads", type=int, default=24)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
