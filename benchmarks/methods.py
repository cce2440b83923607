"""Every preset at equal cost: fidelity against dense at the same mean density and schedule.

    python benchmarks/methods.py --levels 0.45,0.3 -o benchmarks/results/methods_49x256x256.json

On the shipped pipeline, several prompts and seeds. At each level all methods share the schedule,
and the knob of each is set so that its mean density (dense steps included) meets the level. Beside
them two controls: random blocks at the same density, and dense with another dense engine, the noise
floor. A level counts only where the realised density says so: the table prints it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidsparse
from vidsparse.metrics.fidelity import fidelity
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.progress import Progress
from vidsparse.schedule import Schedule
from vidsparse.stats import Stats

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


SCHEDULES = dict.fromkeys((0.5, 0.45, 0.35, 0.3, 0.25), (0.05, 0.3))  # warmup, ramp_until
SCHEDULES[0.15] = (0.05, 0.1)  # out of reach with a longer ramp
TOLERANCES = {0.5: 0.008, 0.45: 0.0098, 0.35: 0.017, 0.3: 0.0235, 0.25: 0.04, 0.15: 0.1}
MOVES: dict[str, Callable[[float, float, float], float]] = {  # of a knob, where a density is off
    "density": lambda value, off, way: min(1.0, max(0.005, value - off / way)),
    "tolerance": lambda value, off, way: min(0.9, value * math.exp(off / 0.08)),
    "margin": lambda value, off, way: value + off / 0.1,
}
METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "auto": {"knob": "tolerance", "start": TOLERANCES, "replan": 1},
    "semantic": {},
    "svg2": {},
    "svg2-ear": {},
    "draft": {},
    "balanced": {},
    "adaspa": {"replan": 1},
    "svg": {},
    "vmoba": {},
    "xattention": {},
    "paro": {},
    "rainfusion": {},
    "sparse-vdit": {},
    "re-ttention": {"replan": 20},  # a dense step each fifth one would cost more than a level has
    "psa": {},
    "rectified": {},
    "lite": {"knob": "margin", "start": -1.0},
    "radial": {},
    "sta": {},
    "delta": {},
    "pbs": {},
    "proxyattn": {},
    "minference": {},
    "mminference": {},
    "tidal": {},
    "sparge": {},
    "sol": {},
    "subblock": {},
    "coreset": {},
    "vidtome": {},
    "vorta": {},
    "freeswim": {},
    "draft, corrected": {"preset": "draft", "correction": "delta"},
    "balanced, corrected": {"preset": "balanced", "correction": "delta"},
    "semantic, corrected": {"preset": "semantic", "correction": "delta"},
    "draft, keys by importance": {"preset": "draft", "order": "importance"},
    "balanced, keys by importance": {"preset": "balanced", "order": "importance"},
    "draft, 2 scoring heads": {"preset": "draft", "scoring_heads": 2},
    "balanced, 2 scoring heads": {"preset": "balanced", "scoring_heads": 2},
    "draft, 2 layers share": {"preset": "draft", "share_layers": 2},
    "semantic, 2 layers share": {"preset": "semantic", "share_layers": 2},
    "value error of 8 rows": {"preset": "balanced", "mass": "rows"},
    "value error of all rows": {"preset": "balanced", "mass": "rows", "rows": 0},
    "svg2, branches apart": {"preset": "svg2", "share_branches": False},
    "balanced, means for what is skipped": {"preset": "balanced", "compensation": "centroid"},
    "balanced, by the errors of means": {
        "preset": "balanced",
        "compensation": "centroid",
        "estimator": "routing",
    },
    "draft, branches apart": {"preset": "draft", "share_branches": False},
    "auto, plans kept for 4 steps": {"preset": "auto", "knob": "tolerance", "start": TOLERANCES},
}
CLOSE = 0.012  # of the level: as near as blocks allow


class Run(NamedTuple):
    """One clip."""

    frames: Any
    stats: Stats
    seconds: float


class Level:
    """One mean density: its schedule and what is known of its knobs."""

    def __init__(self, density: float, steps: int) -> None:
        self.density = density
        self.schedule = dict(zip(("warmup", "ramp_until"), SCHEDULES[density], strict=True))
        self.way = mean(Schedule(**self.schedule).ways(Progress.first(steps)))

    def start(self) -> float:
        """The density at full sparsity that meets the level, if nothing else costs."""
        return max(0.01, 1 - (1 - self.density) / self.way)


def main() -> None:
    args = parse()
    if args.merge:
        merge(args.merge, args.output)
        return
    runner = Runner(args)
    knobs = read_knobs(args.knobs) if args.knobs else {}
    cases = [(p, s) for s in range(args.seeds) for p in PROMPTS[: args.prompts]]
    generate = cached(runner)
    dense, floor = dense_clips(generate, cases, args.dense)
    runner.pipe.scheduler.set_timesteps(runner.steps)  # dense clips of a file left it as it was
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for name in args.methods.split(";") if args.methods else METHODS:
        for level in (Level(float(text), runner.steps) for text in args.levels.split(",")):
            if time.perf_counter() - started > args.seconds:
                break
            try:
                known = knobs.get((name, level.density))
                rows.append(run_method(generate, dense, name, level, runner, known, args.trials))
            except vidsparse.BadInputError as error:
                rows.append({"method": name, "level": level.density, "error": str(error)})
            show(rows[-1])
            save(args, runner, rows, floor, cases)


def merge(parts: list[Path], output: Path) -> None:
    """Put the rows of runs that differ only in their methods or levels into one file."""
    records = [json.loads(path.read_text()) for path in parts]
    whole = records[0] | {"command": [record["command"] for record in records]}
    whole["schedules"] = {k: v for record in records for k, v in record["schedules"].items()}
    whole["rows"] = [row for record in records for row in record["rows"]]
    output.write_text(json.dumps(whole, indent=1) + "\n")


def read_knobs(path: Path) -> dict[tuple[str, float], float]:
    """What an earlier run set the knob of each method to, at each level."""
    rows = [row for row in json.loads(path.read_text())["rows"] if "settings" in row]
    return {
        (row["method"], row["level"]): row["settings"][
            METHODS[row["method"]].get("knob", "density")
        ]
        for row in rows
    }


def dense_clips(
    generate: Callable[..., Any], cases: list[tuple[str, int]], path: Path | None
) -> tuple[dict[tuple[str, int], np.ndarray], float]:
    """The clip of every case, and the noise floor; from a file if it is there, else into it."""
    if path and path.exists():
        found = np.load(path)
        return {case: found[repr(case)] for case in cases}, float(found["floor"])
    dense = {case: generate(case) for case in cases}
    with sdpa_kernel(SDPBackend.MATH):
        floor = fidelity(generate(cases[0]), dense[cases[0]]).psnr
    if path:
        np.savez(path, floor=floor, **{repr(case): clip for case, clip in dense.items()})
    return dense, floor


def cached(runner: Runner) -> Callable[[tuple[str, int]], Any]:
    def generate(case: tuple[str, int]) -> Any:
        runner.seed = case[1]
        return runner.generate(case[0]).frames

    return generate


def run_method(
    generate: Callable[..., Any],
    dense: dict[Any, Any],
    name: str,
    level: Level,
    runner: Runner,
    known: float | None = None,
    trials: int = 5,
) -> dict[str, Any]:
    """The knob is set on the first clip, unless it is known; then all clips run with it."""
    settings: dict[str, Any] = {"block": 64, "min_tokens": 0} | METHODS[name] | level.schedule
    preset = settings.pop("preset", name)
    if "block" not in vidsparse.PRESETS[preset].parameters():  # of clusters, or of one size only
        del settings["block"]
    knob = settings.pop("knob", "density")
    value = settings.pop("start", level.start())
    value = value[level.density] if isinstance(value, dict) else value
    value = value if known is None else known

    def run(case: Any) -> Run:
        start = time.perf_counter()
        changes: dict[str, Any] = settings | {knob: value}
        with vidsparse.sparsify(runner.pipe, preset, strict=True, **changes) as session:
            frames = generate(case)
        return Run(frames, session.stats, time.perf_counter() - start)

    first, *others = dense
    runs: dict[Any, Run] = {}
    for trial in range(trials):
        runs = {first: run(first)}
        realised = runs[first].stats.mean_density
        if known or abs(realised - level.density) < CLOSE or trial == trials - 1:
            break
        value = MOVES[knob](value, realised - level.density, level.way)
    runs |= {case: run(case) for case in others}
    stats = [each.stats for each in runs.values()]
    scores = [fidelity(each.frames, dense[case]) for case, each in runs.items()]
    return {
        "method": name,
        "level": level.density,
        "preset": preset,
        "settings": settings | {knob: value},
        "mean_density": mean(each.mean_density for each in stats),
        "dense_steps_share": stats[0].dense_steps_share,
        "psnr": mean(score.psnr for score in scores),
        "psnr_each": [score.psnr for score in scores],
        "ssim": mean(score.ssim for score in scores),
        "temporal_error": mean(
            temporal_error(each.frames, dense[case]) for case, each in runs.items()
        ),
        "seconds": mean(each.seconds for each in runs.values()),
        "planning_share": stats[0].plan_seconds / max(stats[0].attention_seconds, 1e-9),
    }


def temporal_error(frames: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute error of the change from frame to frame, on the 0 to 255 scale."""
    change, true = (np.diff(x.astype(np.float32), axis=0) for x in (frames, reference))
    return float(np.abs(change - true).mean())


def show(row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{row['method']:20s} {row['level']:.2f}  {row['error']}", flush=True)
        return
    print(
        f"{row['method']:20s} {row['level']:.2f}  density {row['mean_density']:.3f}  "
        f"psnr {row['psnr']:6.2f}  ssim {row['ssim']:.3f}  "
        f"temporal {row['temporal_error']:5.2f}  {row['seconds']:5.1f} s  "
        f"planning {row['planning_share']:.0%}  {[round(p, 1) for p in row['psnr_each']]}",
        flush=True,
    )


def save(
    args: argparse.Namespace,
    runner: Runner,
    rows: list[dict[str, Any]],
    floor: float,
    cases: list[tuple[str, int]],
) -> None:
    record = describe(runner, args) | {
        "cases": cases,
        "noise_floor_psnr": None if floor == math.inf else floor,
        "schedules": {level: SCHEDULES[float(level)] for level in args.levels.split(",")},
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="49x256x256", help="FRAMESxHEIGHTxWIDTH in pixels")
    parser.add_argument("--levels", default="0.5,0.35,0.25,0.15", help="mean densities")
    parser.add_argument("--methods", default="", help="some of them, separated by semicolons")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trials", type=int, default=5, help="of a knob, to meet a level")
    parser.add_argument("--knobs", type=Path, help="results whose knobs are taken as they are")
    parser.add_argument("--dense", type=Path, help="file of dense clips, for runs that share them")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after this time")
    parser.add_argument("--merge", type=Path, nargs="+", help="only put these results into one")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
