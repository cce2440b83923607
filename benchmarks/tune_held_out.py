"""Does what ``vidsparse tune`` finds on a few prompts hold on others, and does it beat the ladder?

    python benchmarks/tune_held_out.py -o benchmarks/results/tune_held_out_h200.json

The search of ``tune`` on the shipped pipeline, for each target: mean PSNR against dense of a few
prompts, two unless ``--tuned-on`` says more. What it finds draws eight other prompts, and so does
the rung of the ladder that is nearest in time, its mean density turned until it takes as long. A
batch is drawn at once. On a GPU the small pipeline waits for launches, whatever is computed, so
time is what a run of Wan 2.1 14B at 720p would take on an H200 by the prices of ``vidsparse plan``,
at the density that ran here; the seconds that the batch took here stand beside it. ``--tiny`` tries
the script on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from caches import WAN_14B
from ladder import DEVICE, PROMPTS, Studio, about, scores, write

import vidsparse
from vidsparse.call_cost import call_cost
from vidsparse.comparison.attention_error import ErrorMeter
from vidsparse.dial import LEAST, full_density, mean_density
from vidsparse.errors import OutOfReachError
from vidsparse.gpus import GPUS
from vidsparse.metrics.statistics import Paired, Summary, paired, summarize
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.step_time import dense_step
from vidsparse.tuning.curves import Errors
from vidsparse.tuning.search import Base, Measure, Target, Trial
from vidsparse.tuning.trials import errors_of_heads
from vidsparse.tuning.tune import find

TUNED_ON = [
    "a blue ring moving left over a light pink dotted background",
    "a small green star rotating over a dark gray wavy background",
    "a large orange square bouncing over a light blue checkered background",
    "a purple triangle falling over a plain dark green background",
]
LADDER = ("quality", "balanced", "fast", "turbo")
SHIFT = 5.0


class Batch:
    """Draws clips of all cases as one batch, dense once, and presets against that."""

    def __init__(self, args: argparse.Namespace, prompts: list[str], seeds: range) -> None:
        self.studio = Studio(args.size, 1, 1)
        self.studio.cases = [(prompt, seed) for prompt in prompts for seed in seeds]
        self.prompts = [prompt for prompt, _ in self.studio.cases]
        self.steps, self.block = args.steps, args.block
        self.layers = len(self.studio.pipe.transformer.blocks)
        self._clips()  # builds what is built once
        self.dense, self.dense_seconds = self._clips()
        self.tried: dict[Preset, dict[str, Any]] = {}

    def __call__(self, preset: Preset) -> Trial | None:
        """A preset on the cases; None where a run cannot have its mean density."""
        if preset.policy.mean_density is not None:
            try:
                full_density(preset, Progress.first(self.steps), layers=self.layers)
            except OutOfReachError:
                return None
        if preset not in self.tried:
            try:
                self.tried[preset] = self._drawn(preset)
            except OutOfReachError:  # with what its plans keep besides
                return None
        row = self.tried[preset]
        seconds, density = self.price(preset, row["mean_density"]), row["mean_density"]
        gain = dense_step(WAN_14B, GPUS["h200"]).seconds * self.steps / seconds
        return Trial(preset, -fmean(row["psnr_each"]), seconds, gain, density)

    def errors(self, preset: Preset) -> Errors:
        """Mean relative error of each head of each layer, at full sparsity."""
        meter = ErrorMeter()
        with vidsparse.sparsify(self.studio.pipe, preset) as session:
            session.observe(meter)
            self._clips()
        return errors_of_heads(meter, preset.schedule.ways(Progress.first(self.steps)))

    def price(self, preset: Preset, density: float) -> float:
        """Seconds of a run of Wan 2.1 14B on an H200 of as many steps."""
        step, dense = dense_step(WAN_14B, GPUS["h200"]), self.dense_share(preset)
        cost = call_cost(preset, self.block)
        calls = 1e-3 * cost.fixed * WAN_14B.layers * WAN_14B.samples
        sparse = cost.start * (1 - dense) + cost.slope * (density - dense)
        return self.steps * (
            step.rest
            + calls * (1 - dense)
            + step.attention * ((cost.dense or 1.0) * dense + sparse)
        )

    def dense_share(self, preset: Preset) -> float:
        """Share of the calls that are dense."""
        ways = preset.schedule.ways(Progress.first(self.steps))
        layers = min(1.0, preset.schedule.dense_layers / self.layers)
        return 1 - (1 - fmean(way <= 0 for way in ways)) * (1 - layers)

    def on_the_ladder(self, seconds: float) -> Preset:
        """The rung that is nearest in time, turned until it takes as long."""
        rungs = [changed(name, self.block) for name in LADDER]
        near = min(rungs, key=lambda each: abs(self.price(each, mean_of(each)) - seconds))
        low, high = LEAST, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if self.price(near, middle) > seconds else (middle, high)
        return near.override({"mean_density": round(low, 4)})

    def _drawn(self, preset: Preset) -> dict[str, Any]:
        with vidsparse.sparsify(self.studio.pipe, preset, strict=True) as session:
            clips, seconds = self._clips()
            density = session.stats.mean_density
        psnr = scores(clips, self.dense)["psnr"]
        return {"mean_density": density, "batch_seconds": seconds, "psnr_each": psnr}

    def _clips(self) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        clips = self.studio.clips(SHIFT, self.steps)
        return clips, time.perf_counter() - start


def main() -> None:
    args = parse()
    started = time.perf_counter()
    few, held_out = (
        Batch(args, TUNED_ON[: args.tuned_on], range(args.tune_seeds)),
        Batch(args, PROMPTS[: args.prompts], range(args.seeds)),
    )
    record = about(args) | {
        "size": args.size, "steps": args.steps, "block": args.block, "tuned_on": few.studio.cases,
        "held_out": held_out.studio.cases, "dense_batch_seconds": held_out.dense_seconds,
        "rows": [],
    }  # fmt: skip
    for target in (float(text) for text in args.targets.split(",")):
        if time.perf_counter() - started > args.seconds:
            print(f"{target:g} dB and what follows is left out: {args.seconds} s are over")
            break
        record["rows"].append(row(few, held_out, target, args))
        write(args.output, record)


def row(few: Batch, held_out: Batch, target: float, args: argparse.Namespace) -> dict[str, Any]:
    started, before = time.perf_counter(), len(few.tried)
    bases = [base(name, args, few.layers) for name in args.presets.split(",")]
    wanted = Target(Measure.PSNR, target)
    best = find(bases, wanted, few, args.steps, few.layers)
    tuning = time.perf_counter() - started
    ours, rung = scored(held_out, best.preset), held_out.on_the_ladder(best.seconds)
    theirs = scored(held_out, rung)
    apart = paired(ours["psnr_each"], theirs["psnr_each"], held_out.prompts)
    found = {
        "target": target, "tuning_seconds": tuning, "trials": len(few.tried) - before,
        "on_its_prompts": -best.error, "met_there": wanted.met(best),
        "off_target": ours["psnr"]["mean"] - target, "tuned": ours, "ladder": theirs,
        "tuned_minus_ladder": dataclasses.asdict(apart),
    }  # fmt: skip
    show(found, apart)
    return found


def scored(held_out: Batch, preset: Preset) -> dict[str, Any]:
    """A preset on the prompts that it was not tuned on."""
    trial = held_out(preset)
    assert trial is not None
    budgets = preset.schedule.budgets
    return held_out.tried[preset] | {
        "preset": preset.name,
        "parameters": preset.plain_parameters(),
        "budgets": {name: list(each) for name, each in budgets.layers} if budgets else None,
        "predicted_seconds": trial.seconds,
        "predicted_gain": trial.gain,
        "psnr": summarize(held_out.tried[preset]["psnr_each"], held_out.prompts).model_dump(),
    }


def show(found: dict[str, Any], apart: Paired) -> None:
    ours, theirs = found["tuned"], found["ladder"]
    off = found["off_target"]
    within = "within 1 dB" if abs(off) <= 1 else "NOT within 1 dB"
    print(
        f"target {found['target']:g} dB, {found['trials']} trials in "
        f"{found['tuning_seconds']:.0f} s: {found['on_its_prompts']:.2f} dB on its own prompts"
        f"{'' if found['met_there'] else ' (not met)'}, held out {off:+.2f} dB off: {within}"
    )
    for name, each in (("tuned", ours), ("ladder", theirs)):
        shared = "" if not each["budgets"] else ", heads or layers by error"
        print(
            f"  {name:6s} {each['preset']} at {each['mean_density']:.3f}{shared}: {said(each)}, "
            f"{each['predicted_gain']:.2f}x ({each['predicted_seconds']:.0f} s) predicted, "
            f"{each['batch_seconds']:.1f} s the batch here"
        )
    low_high = "" if apart.low is None else f" [{apart.low:+.2f}, {apart.high:+.2f}]"
    verdict = apart.verdict.replace("a better", "tuned better").replace("b better", "ladder better")
    print(
        f"  tuned - ladder {apart.difference:+.2f} dB{low_high}, sign p {apart.sign_p:.3f}: "
        f"{verdict}",
        flush=True,
    )


def said(each: dict[str, Any]) -> str:
    found = Summary(**each["psnr"])
    low_high = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.mean:.2f}{low_high} dB"


def base(name: str, args: argparse.Namespace, layers: int) -> Base:
    """As ``tune`` starts from a preset."""
    preset = changed(name, args.block)
    dial = preset.override({"mean_density": 0.5})
    return Base(preset, mean_density(dial, Progress.first(args.steps), LEAST, layers=layers))


def changed(name: str, block: int) -> Preset:
    """A preset with blocks of a size, where it has blocks, on any number of tokens."""
    preset = PRESETS[name].override({"min_tokens": 0})
    return preset if preset.policy.order.makes_clusters else preset.override({"block": block})


def mean_of(preset: Preset) -> float:
    found = preset.policy.mean_density
    assert found is not None
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="25,30,35", help="PSNR in dB, separated by commas")
    parser.add_argument("--presets", default="balanced,semantic", help="where tuning starts")
    parser.add_argument("--size", default="33x192x192")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--block", type=int, default=128 if DEVICE == "cuda" else 64)
    parser.add_argument("--tuned-on", type=int, default=2, help="prompts")
    parser.add_argument("--tune-seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8, help="held out")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="after which no target is begun")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.tiny:
        args.size, args.steps, args.block, args.prompts, args.seeds = "5x64x64", 8, 16, 3, 1
        args.tune_seeds = 1
        args.output = args.output or Path(tempfile.mkdtemp()) / "tiny.json"
    return args


if __name__ == "__main__":
    main()
