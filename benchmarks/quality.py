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
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidsparse
from vidsparse.metrics.fidelity import fidelity
from vidsparse.metrics.report.contact_sheet import contact_sheet
from vidsparse.pipelines.checkpoints import TINY

GUIDANCE = 4.0
PROMPTS = [
    "a red circle moving right over a light blue striped background",
    "a yellow star moving up over a dark purple dotted background",
    "a large green triangle bouncing over a checkered gray background",
    "a pink square circling over a plain dark blue background",
]


class Clip(NamedTuple):
    frames: Any
    seconds: float


class Runner:
    """Generates the clips of one benchmark."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = False
        pipe: Any = DiffusionPipeline.from_pretrained(TINY, use_safetensors=True)
        self.pipe = pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        frames, height, width = (int(n) for n in args.size.split("x"))
        self.size = {"num_frames": frames, "height": height, "width": width}
        self.steps, self.seed = args.steps, args.seed

    def generate(self, prompt: str) -> Clip:
        start = time.perf_counter()
        frames = self.pipe(
            prompt,
            **self.size,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(self.seed),
        ).frames[0]
        return Clip((frames * 255).round().astype("uint8"), time.perf_counter() - start)


def main() -> None:
    args = parse()
    runner, prompts = Runner(args), PROMPTS[: args.prompts]
    runner.generate(prompts[0])  # pays for lazy initialisation
    dense = {prompt: runner.generate(prompt) for prompt in prompts}
    with sdpa_kernel(SDPBackend.MATH):
        floor = [
            fidelity(runner.generate(p).frames, dense[p].frames).psnr for p in prompts[: args.floor]
        ]
    print("noise floor", floor, "dense seconds", [round(c.seconds, 1) for c in dense.values()])
    rows, clips = [], {"dense": dense[prompts[0]].frames}
    for label, preset, parameters in json.loads(args.cases.read_text()):
        row, first = run_case(runner, dense, preset, parameters)
        rows.append({"case": label, **row})
        clips[f"{label}  density {row['mean_density']:.2f}  {row['psnr_each'][0]:.1f} dB"] = first
        show(rows[-1])
    if args.sheet:
        contact_sheet(clips, title=prompts[0]).save(args.sheet)
    record = describe(runner, args) | {
        "prompts": prompts,
        "noise_floor_psnr": [None if p == float("inf") else p for p in floor],
        "dense_seconds": [c.seconds for c in dense.values()],
        "cases": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


def run_case(
    runner: Runner, dense: dict[str, Clip], preset: str, parameters: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """The measurements of one case, and the frames of its first prompt."""
    scores, stats, clips = [], [], []
    for prompt, reference in dense.items():
        with vidsparse.sparsify(runner.pipe, preset, strict=True, **parameters) as session:
            clip = runner.generate(prompt)
        scores.append(fidelity(clip.frames, reference.frames))
        stats.append((session.stats.mean_density, session.stats.dense_steps_share))
        clips.append(clip)
    measured = {
        "preset": preset,
        "parameters": parameters,
        "psnr": mean(s.psnr for s in scores),
        "psnr_each": [s.psnr for s in scores],
        "ssim": mean(s.ssim for s in scores),
        "mean_density": mean(density for density, _ in stats),
        "dense_steps_share": mean(share for _, share in stats),
        "seconds": mean(clip.seconds for clip in clips),
    }
    return measured, clips[0].frames


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:42s} psnr {row['psnr']:6.2f}  ssim {row['ssim']:.3f}  "
        f"density {row['mean_density']:.3f}  dense steps {row['dense_steps_share']:.2f}  "
        f"{row['seconds']:.1f} s  {[round(p, 1) for p in row['psnr_each']]}",
        flush=True,
    )


def describe(runner: Runner, args: argparse.Namespace) -> dict[str, Any]:
    cuda = runner.device == "cuda"
    return {
        "command": " ".join(sys.argv),
        "size": args.size,
        "seed": args.seed,
        "steps": args.steps,
        "guidance": GUIDANCE,
        "dtype": "float32",
        "device": torch.cuda.get_device_name() if cuda else platform.processor(),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "vidsparse": vidsparse.__version__,
            "python": platform.python_version(),
        },
    }


def parse() -> argparse.Namespace:
    cases = Path(__file__).with_name("quality_cases.json")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="49x256x256", help="FRAMESxHEIGHTxWIDTH in pixels")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--floor", type=int, default=1, help="prompts for the noise floor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=Path, default=cases, help="JSON: [label, preset, changes]")
    parser.add_argument("--sheet", type=Path, help="PNG with the clips of the first prompt")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
