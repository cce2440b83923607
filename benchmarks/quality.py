"""Fidelity of every preset against dense on the shipped pipeline, beside random blocks.

    python benchmarks/quality.py --size 49x256x256 --prompts 4 -o benchmarks/results/quality.json

Every case runs the same prompts and seeds. A case is fair to compare only at equal mean density,
so the table prints it, with the share of dense steps; the noise floor is dense against dense with
torch's math attention.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidsparse
from vidsparse.metrics.fidelity import fidelity
from vidsparse.pipelines.video import to_uint8

TINY = Path(vidsparse.__file__).parent / "pipelines" / "tiny"
PROMPTS = [
    "a red circle moving right over a light blue striped background",
    "a yellow star moving up over a dark purple dotted background",
    "a large green triangle bouncing over a checkered gray background",
    "a pink square circling over a plain dark blue background",
]
Case = tuple[str, str, dict[str, Any]]  # label, preset, parameters


def main() -> None:
    args = parse()
    cases = json.loads(args.cases.read_text())
    frames, height, width = (int(n) for n in args.size.split("x"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    pipe = diffusers.WanPipeline.from_pretrained(TINY, use_safetensors=True).to(device)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt: str) -> tuple[Any, float]:
        start = time.perf_counter()
        video = pipe(
            prompt, height=height, width=width, num_frames=frames, num_inference_steps=args.steps,
            guidance_scale=4.0, generator=torch.Generator().manual_seed(args.seed),
        ).frames[0]  # fmt: skip
        return to_uint8(video), time.perf_counter() - start

    prompts = PROMPTS[: args.prompts]
    generate(prompts[0])
    dense = {prompt: generate(prompt) for prompt in prompts}
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        floor = [fidelity(generate(p)[0], dense[p][0]).psnr for p in prompts[: args.floor]]
    print("noise floor", floor, "dense seconds", [round(s, 1) for _, s in dense.values()], flush=True)
    for label, preset, parameters in cases:
        scores, densities, shares, seconds = [], [], [], []
        for prompt in prompts:
            with vidsparse.sparsify(pipe, preset, strict=True, **parameters) as session:
                video, spent = generate(prompt)
            scores.append(fidelity(video, dense[prompt][0]))
            densities.append(session.stats.mean_density)
            shares.append(session.stats.dense_steps_share)
            seconds.append(spent)
        rows.append({
            "case": label, "preset": preset, "parameters": parameters,
            "psnr": statistics.mean(s.psnr for s in scores),
            "psnr_each": [s.psnr for s in scores],
            "ssim": statistics.mean(s.ssim for s in scores),
            "mean_density": statistics.mean(densities),
            "dense_steps_share": statistics.mean(shares),
            "seconds": statistics.mean(seconds),
        })  # fmt: skip
        print(
            f"{label:42s} psnr {rows[-1]['psnr']:6.2f}  ssim {rows[-1]['ssim']:.3f}  "
            f"density {rows[-1]['mean_density']:.3f}  dense steps {rows[-1]['dense_steps_share']:.2f}"
            f"  {rows[-1]['seconds']:.1f} s  {[round(s.psnr, 1) for s in scores]}",
            flush=True,
        )
    record = {
        "command": " ".join(sys.argv), "seed": args.seed, "steps": args.steps, "guidance": 4.0,
        "size": args.size, "prompts": prompts, "dtype": "float32",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__,
                     "vidsparse": vidsparse.__version__, "python": platform.python_version()},
        "noise_floor_psnr": [None if p == float("inf") else p for p in floor],
        "dense_seconds": [s for _, s in dense.values()], "cases": rows,
    }  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="49x256x256", help="FRAMESxHEIGHTxWIDTH in pixels")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--floor", type=int, default=1, help="prompts for the noise floor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=Path, default=Path(__file__).with_name("quality_cases.json"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
