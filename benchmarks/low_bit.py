"""Eight-bit attention against bf16: times on models' shapes, and errors against float64.

    python benchmarks/low_bit.py -o benchmarks/results/low_bit_h200.json

Times are medians in one process, of random tensors laid out as diffusers has them and of random
plans of 128 x 128 blocks. TFLOP/s count computed pairs (4 x heads x pairs x head_dim). Efficiency
is density x the fastest dense bf16 kernel's time / ours, quantising included: what a plan really
saves over what it could save there.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.flash import flash_dense
from vidsparse.kernels.engines.int8 import low_bit_attention
from vidsparse.kernels.engines.low_bit import quantize
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.triton import triton_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import low_bit_hopper

BLOCK, DENSITIES = 128, (1.0, 0.25, 0.05)


@dataclass(frozen=True)
class Shape:
    """One self-attention call of a model."""

    name: str
    heads: int
    tokens: int
    head_dim: int


SHAPES = (
    Shape("wan-14b-720p", 40, 75_600, 128),
    Shape("flux-4k", 24, 66_048, 128),
    Shape("cogvideox-5b", 48, 17_776, 64),
)


def main() -> None:
    args = parse()
    shapes = [shape for shape in SHAPES if not args.only or shape.name in args.only.split(",")]
    result: dict[str, Any] = {
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        },
        "errors": [row for head_dim in (64, 128) for row in errors(head_dim)],
        "shapes": [],
    }
    for shape in shapes:
        result["shapes"].append(times(shape, args.repeats))
        if args.output:
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["errors"]))


def times(shape: Shape, repeats: int) -> dict[str, Any]:
    """Every kernel on one shape."""
    q, k, v = draw(1, shape.heads, shape.tokens, shape.head_dim)
    scale = shape.head_dim**-0.5
    flops = 4.0 * shape.heads * shape.tokens**2 * shape.head_dim
    rows: list[dict[str, Any]] = []

    def note(kernel: str, density: float, ms: float) -> None:
        tflops = round(density * flops / ms / 1e9, 1)
        rows.append({"kernel": kernel, "density": round(density, 4), "ms": ms, "tflops": tflops})
        print(f"{shape.name:14} {kernel:26} {density:6.3f} {ms:9.3f} ms {tflops:7.1f} TFLOP/s")

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        note("cudnn", 1.0, median(lambda: scaled_dot_product_attention(q, k, v), repeats))
    try:
        note("flash-attn-4", 1.0, median(lambda: flash_dense(q, k, v, scale=scale), repeats))
    except BadInputError as error:
        print(error)
    x = quantize(q, k, v, scale=scale, layout="interleaved")
    quantizing = median(lambda: quantize(q, k, v, scale=scale, layout="interleaved"), repeats)
    print(f"{shape.name:14} quantising {quantizing:.3f} ms")
    out = torch.empty_like(q)
    for asked in DENSITIES:
        plan = random_plan(shape, asked)
        density = plan.density
        kernels: dict[str, Callable[[], object]] = {
            "bf16": lambda plan=plan: triton_attention(q, k, v, plan, scale=scale),
            "int8, quantised before": lambda plan=plan: low_bit_hopper.launch(
                x, plan, out, return_lse=False
            ),
            "int8": lambda plan=plan: low_bit_attention(q, k, v, plan),
        }
        for name, run in kernels.items():
            note(name, density, median(run, repeats))
    best = min(row["ms"] for row in rows if row["density"] == 1.0 and "int8" not in row["kernel"])
    for row in rows:
        row["efficiency"] = round(row["density"] * best / row["ms"], 3)
    return {**asdict(shape), "quantizing_ms": quantizing, "fastest_dense_ms": best, "rows": rows}


def errors(head_dim: int, tokens: int = 4096) -> list[dict[str, Any]]:
    """Relative errors of one call, dense and at density .25, against float64."""
    rows = []
    for asked in (1.0, 0.25):
        q, k, v = draw(1, 4, tokens, head_dim)
        plan = random_plan(Shape("", 4, tokens, head_dim), asked)
        exact, _ = reference_attention(q.double(), k.double(), v.double(), plan)
        for kernel, out in (
            ("bf16", triton_attention(q, k, v, plan, scale=head_dim**-0.5)[0]),
            ("int8", low_bit_attention(q, k, v, plan)[0]),
        ):
            difference = out.double() - exact
            cosine = (out.double() * exact).sum() / out.double().norm() / exact.norm()
            rows.append(
                {
                    "kernel": kernel,
                    "head_dim": head_dim,
                    "density": round(plan.density, 4),
                    "relative_l2": float(difference.norm() / exact.norm()),
                    "relative_l1": float(difference.abs().sum() / exact.abs().sum()),
                    "cosine": float(cosine),
                }
            )
    return rows


def draw(batch: int, heads: int, tokens: int, head_dim: int) -> list[Tensor]:
    """q, k and v as views of ``(batch, seq, heads, head_dim)``."""
    made = torch.randn(3, batch, tokens, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    return [x.transpose(1, 2) for x in made]


def random_plan(shape: Shape, density: float) -> BlockPlan:
    """Each row keeps the same number of random blocks; another draw for each head."""
    blocks = math.ceil(shape.tokens / BLOCK)
    keep = torch.ones(1, 1, blocks, blocks, dtype=torch.bool, device="cuda")
    if density < 1:
        score = torch.rand(1, shape.heads, blocks, blocks, device="cuda")
        kept = score.topk(max(1, round(density * blocks)), dim=-1).indices
        keep = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, kept, True)
    return BlockPlan.from_mask(
        keep, q_len=shape.tokens, kv_len=shape.tokens, q_block=BLOCK, kv_block=BLOCK
    )


def median(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds on the GPU, the middle of so many calls after two that warm up."""
    run()
    run()
    spans = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        spans.append(start.elapsed_time(end))
    return sorted(spans)[len(spans) // 2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="some of the shapes, separated by commas")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
