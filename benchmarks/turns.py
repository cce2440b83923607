"""What it gains that the Hopper kernels draw their tiles of queries in turn.

    python benchmarks/turns.py -o benchmarks/results/turns_h200.json

The kernels of this tree beside those of a commit in which a program took every ``num_programs``-th
tile: the same plans and tensors, in one process. Rows keep numbers of blocks that differ as a
normal distribution of logarithms does, text rows and columns keep all. Needs the repository's
history, and a GPU of Hopper's kind; ``int8`` is without quantising.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsparse.bench import kernel_bench
from vidsparse.kernels.engines.low_bit import key_block_of, quantize
from vidsparse.kernels.plan import BlockPlan

ROOT = Path(__file__).parent.parent
SPREAD = 0.5  # standard deviation of the logarithms
BEFORE = "4cf9f74"  # the last commit in which tiles were dealt out


class Case(NamedTuple):
    """A model at a size; ``text`` blocks of it come first, or last where it is negative."""

    name: str
    heads: int
    tokens: int
    block: int
    head_dim: int
    text: int
    densities: tuple[float, ...]


CASES = (
    Case("Wan 2.1 14B, 720p", 40, 75_600, 128, 128, 0, (0.15, 0.25, 0.35, 1.0)),
    Case("Wan 2.1 1.3B, 480p", 12, 32_760, 128, 128, 0, (0.15, 0.25, 1.0)),
    Case("Wan 2.1 1.3B, 480p, blocks of 64", 12, 32_760, 64, 128, 0, (0.25,)),
    Case("FLUX.1 and Qwen-Image, 2048, blocks of 64", 24, 16_896, 64, 128, 8, (0.1, 0.25, 1.0)),
    Case("FLUX.1 and Qwen-Image, 2048, blocks of 128", 24, 16_896, 128, 128, 4, (0.1, 0.25)),
    Case("FLUX.1, 4096", 24, 66_048, 128, 128, 4, (0.1, 0.25)),
    Case("HunyuanVideo, 720p", 24, 119_056, 128, 128, -2, (0.15, 0.25)),
    Case("HunyuanVideo, 544 x 960", 24, 67_576, 128, 128, -2, (0.15, 0.25)),
    Case("CogVideoX-5B", 48, 17_776, 128, 64, 2, (0.15, 0.25)),
    Case("LTX-Video, blocks of 64", 32, 7_392, 64, 64, 0, (0.25,)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE, help="commit of the other kernels")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    kernels = {"bf16": ("hopper", in_16_bits), "int8": ("low_bit_hopper", in_8_bits)}
    old = kernels_of(args.before, [name for name, _ in kernels.values()])
    rows: list[dict[str, Any]] = []
    for case in CASES:
        q, k, v = made(case)
        for density in case.densities:
            plan = plan_of(case, density, q.device)
            for kind, (name, calls_of) in kernels.items():
                if kind == "int8" and case.block != 128:
                    continue
                now = importlib.import_module(f"vidsparse.kernels.triton.{name}")
                calls = [calls_of(each, q, k, v, plan) for each in (old[name], now)]
                rows.append(compared(case, kind, float(plan.density), calls))
                show(rows[-1])
                if args.output:
                    command = " ".join(sys.argv)
                    kernel_bench.write(args.output, kernel_bench.record(rows, command, WHAT))


WHAT = (
    "rows of different lengths (normal logarithms with a deviation of 0.5; all alike at density "
    "1), text rows and columns whole; medians of 3 turns of 5 calls"
)


def kernels_of(commit: str, names: list[str]) -> dict[str, ModuleType]:
    """Modules of ``kernels/triton`` as a commit has them, which use one another's."""
    folder, found = Path(tempfile.mkdtemp()), {}
    for name in names:
        shown = ["git", "-C", str(ROOT), "show", f"{commit}:kernels/triton/{name}.py"]
        text = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
        for other in names:
            text = text.replace(f"vidsparse.kernels.triton.{other} import", f"old_{other} import")
        path = folder / f"old_{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[name] = module
    return found


def made(case: Case) -> list[Tensor]:
    shape, device = (1, case.heads, case.tokens, case.head_dim), kernel_bench.device()
    return [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in "qkv"]


def plan_of(case: Case, density: float, device: torch.device) -> BlockPlan:
    """Random lists, of as many blocks as each row's share says."""
    torch.manual_seed(0)
    number = -(-case.tokens // case.block)
    spread = SPREAD if density < 1 else 0.0
    share = (spread * torch.randn(case.heads, number, device=device)).exp()
    share = (share / share.mean() * density).clamp(max=1)
    count = (share * number).ceil().clamp(1, number)
    rank = torch.rand(case.heads, number, number, device=device).argsort(-1).argsort(-1)
    mask = rank < count[..., None]
    text = slice(0, case.text) if case.text >= 0 else slice(number + case.text, number)
    mask[:, text] = mask[:, :, text] = True
    return BlockPlan.from_mask(
        mask[None], q_len=case.tokens, kv_len=case.tokens, q_block=case.block, kv_block=case.block
    )


def in_16_bits(module: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Any:
    scale = q.shape[-1] ** -0.5
    return lambda: module.launch(q, k, v, plan, scale=scale, return_lse=False)[0]


def in_8_bits(module: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Any:
    x = quantize(
        q, k, v, scale=q.shape[-1] ** -0.5, key_block=key_block_of(plan), layout="interleaved",
        impl="triton",
    )  # fmt: skip
    out = torch.empty_like(q)

    def call() -> Tensor:
        module.launch(x, plan, out, return_lse=False)
        return out

    return call


def compared(
    case: Case, kind: str, density: float, calls: list[Callable[[], Tensor]]
) -> dict[str, Any]:
    same = torch.equal(calls[0]().clone(), calls[1]())
    times: list[list[float]] = [[], []]
    for _ in range(3):
        for each, call in zip(times, calls, strict=True):
            each.append(clock(call))
    before, now = (median(each) for each in times)
    flops = 4 * density * case.heads * case.tokens**2 * case.head_dim
    return {
        "shape": case.name,
        "heads": case.heads,
        "tokens": case.tokens,
        "head_dim": case.head_dim,
        "block": case.block,
        "text_blocks": case.text,
        "density": density,
        "kernel": kind,
        "every_nth_ms": before,
        "in_turn_ms": now,
        "gain": before / now,
        "tflops": flops / now / 1e9,
        "bitwise": same,
    }


def clock(call: Callable[[], Tensor], number: int = 5) -> float:
    """Milliseconds, a median."""
    call()
    torch.cuda.synchronize()
    found = []
    for _ in range(number):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return median(found)


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['shape']:45s} {row['kernel']} {row['density']:.3f} {row['every_nth_ms']:8.3f} -> "
        f"{row['in_turn_ms']:8.3f} ms {row['gain']:5.2f}x {row['tflops']:5.0f} TFLOP/s "
        f"{'same' if row['bitwise'] else 'DIFFERS'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
