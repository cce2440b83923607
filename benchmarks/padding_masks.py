"""What it gains to leave padding out of dense attention instead of masking it.

    python benchmarks/padding_masks.py -o benchmarks/results/padding_masks_cpu.json

The ways, all of them dense through ``F.scaled_dot_product_attention``:

    pairs    a mask of queries by keys, built anew for each layer, as HunyuanVideo-1.5 does
    row      a mask of keys, built once, as HunyuanVideo does
    left out the tokens that are no padding, gathered and put back, without a mask, as sessions do

Each is compared with float64 on some queries before it is timed; then they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.stats import Stopwatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: str
    heads: int
    video: int
    text: int  # places for text
    words: int  # of which these are no padding
    head_dim: int = 128


CPU = (
    Shape(name="16 heads, as HunyuanVideo-1.5", heads=16, video=2800, text=512, words=64),
    Shape(name="24 heads, as HunyuanVideo", heads=24, video=2800, text=256, words=64),
)
CUDA = (
    Shape(name="HunyuanVideo-1.5 480p 121f", heads=16, video=49_290, text=1_985, words=150),
    Shape(name="HunyuanVideo-1.5 720p 121f", heads=16, video=111_600, text=1_985, words=150),
    Shape(name="HunyuanVideo 544x960 129f", heads=24, video=67_320, text=256, words=60),
    Shape(name="HunyuanVideo 720p 129f", heads=24, video=118_800, text=256, words=60),
)


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    device = torch.device(args.device)
    rows = [measure(shape, device, args.repeats) for shape in (CUDA if args.cuda else CPU)]
    record = {
        "command": " ".join(sys.argv),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def measure(shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = shape.video + shape.text
    made = (torch.randn(1, tokens, shape.heads, shape.head_dim, device=device) for _ in range(3))
    q, k, v = (x.to(dtype).transpose(1, 2) for x in made)
    valid = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    valid[:, : shape.video + shape.words] = True
    ways: dict[str, Callable[[], Tensor]] = {
        "pairs": lambda: pairs(q, k, v, valid),
        "row": lambda: F.scaled_dot_product_attention(q, k, v, valid[:, None, None]),
        "left out": lambda: left_out(q, k, v, shape.video + shape.words),
    }
    memory = {name: check(way, q, k, v, valid) for name, way in ways.items()}
    seconds = take_turns(list(ways.values()), repeats, device)
    times = dict(zip(ways, seconds, strict=True))
    row = asdict(shape) | {
        "dtype": str(dtype),
        "ms": {name: 1e3 * time for name, time in times.items()},
        "extra_bytes": memory,
        "speedup_of_left_out": {name: t / times["left out"] for name, t in times.items()},
    }
    report = "  ".join(f"{name} {1e3 * time:.1f} ms" for name, time in times.items())
    print(f"{shape.name}: {report}", flush=True)
    return row


def pairs(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """As HunyuanVideo-1.5 writes it, temporaries included."""
    rows = valid.view(1, 1, 1, -1).repeat(1, 1, valid.shape[1], 1)
    return F.scaled_dot_product_attention(q, k, v, (rows & rows.transpose(2, 3)).bool())


def left_out(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    out = v.new_zeros(q.shape)
    q, k, v = (x[:, :, :length] for x in (q, k, v))
    out[:, :, :length] = F.scaled_dot_product_attention(q, k, v)
    return out


def check(way: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> int | None:
    """Bytes that a way takes beyond its inputs, None on a CPU; refuses a wrong output."""
    at = torch.arange(0, int(valid.sum()), 997, device=q.device)
    keys, values = (x[:, :, valid[0]].double() for x in (k, v))
    expected = F.scaled_dot_product_attention(q[:, :, at].double(), keys, values)
    del keys, values
    if q.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if q.is_cuda else 0
    made = way()[:, :, at].double()
    error = (made - expected).abs().max()
    assert error <= 4 * torch.finfo(q.dtype).eps, f"off by {error:g}"
    return torch.cuda.max_memory_allocated() - before if q.is_cuda else None


def take_turns(ways: list[Callable[[], Tensor]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each, measured alternately after one call each."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, into in zip(ways, times, strict=True):
            with Stopwatch(device) as watch:
                way()
            if turn:
                into.append(watch.seconds)
    return [statistics.median(each) for each in times]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.cuda = args.device.startswith("cuda")
    return args


if __name__ == "__main__":
    main()
