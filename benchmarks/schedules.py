"""Realised mean density of whole runs, whatever the scheduler, the shift and the number of steps.

    python benchmarks/schedules.py -o benchmarks/results/schedules_cpu.json

Each run steps a scheduler of diffusers as a pipeline does, with random tensors for the model's
output, and attends once a step with random queries, keys and values. Where the progress of a step
comes from, how the density at full sparsity follows from the mean density that was asked for, and
what a plan of whole blocks then computes, is that of the product.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers as _diffusers
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.caller import Caller
from vidsparse.pipelines.clock import Clock
from vidsparse.pipelines.runs import Reading
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.versions import versions

diffusers: Any = _diffusers  # what it exports, its types do not say
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
KINDS = ("UniPC", "Euler", "DPM++", "Heun")
SHIFTS = (1.0, 3.0, 5.0, 7.0, 12.0)
PIXELS = (1024, 2048, 4096)  # of an image of FLUX, whose shift grows with its tokens
STEPS = (4, 8, 20, 40, 50)
ASKED = (0.45, 0.35, 0.25, 0.15)
GRID, BLOCK = TokenGrid(5, 16, 16), 16
NEAR = 0.02


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), []
    for name, steps in product((*fixed(), *dynamic()), STEPS):
        run = list(progress_of(scheduler_of(name), steps, name))
        rows += [row(name, steps, run, asked) for asked in ASKED]
        show(rows[-len(ASKED) :])
    missed = [row for row in rows if "realised" in row and abs(row["off"]) > NEAR]
    print(
        f"{len(rows)} runs, {sum('least' in row for row in rows)} out of reach, {len(missed)} off"
    )
    if args.output:
        about = {"grid": str(GRID), "block": BLOCK, "preset": "balanced", "versions": versions()}
        about |= {"seconds": round(time.perf_counter() - started), "blocks": blocks()}
        args.output.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def fixed() -> Iterator[tuple[str, float]]:
    """Schedulers with one shift."""
    return product(KINDS, SHIFTS)


def dynamic() -> Iterator[tuple[str, float]]:
    """FLUX by its size in pixels: only this scheduler takes its noise levels and their shift."""
    return (("Euler, FLUX", pixels) for pixels in PIXELS)


def scheduler_of(name: tuple[str, float]) -> Any:
    kind, shift = name
    if kind == "UniPC":
        return diffusers.UniPCMultistepScheduler(flow_shift=shift, **FLOW)
    if kind == "DPM++":
        return diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **FLOW)
    if kind == "Heun":
        return diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    if kind == "Euler":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)


def progress_of(scheduler: Any, steps: int, name: tuple[str, float]) -> Iterator[Progress]:
    """What a session reads of the progress at each step, in a loop as pipelines have it."""
    if name[0] == "Euler, FLUX":
        levels = [1 - step / steps for step in range(steps)]
        scheduler.set_timesteps(sigmas=levels, mu=calculate_shift(int(name[1] / 16) ** 2))
    else:
        scheduler.set_timesteps(steps)
    pipeline, frame = SimpleNamespace(), object()
    clock, sample = Clock(lambda: None), torch.zeros(1, 1, 1, 1, 1)
    for t in scheduler.timesteps:
        caller: Any = Caller(pipeline, frame, frame)  # pyright: ignore[reportArgumentType]
        noise = float(t) / 1000
        clock.begin(Reading(noise=lambda level=noise: level, caller=caller, scheduler=scheduler))
        assert clock.progress is not None
        yield clock.progress
        sample = scheduler.step(torch.randn_like(sample), t, sample, return_dict=False)[0]


def row(name: tuple[str, float], steps: int, run: list[Progress], asked: float) -> dict[str, Any]:
    """A run of a layer, at the mean density that was asked for, or why not."""
    kind, shift = name
    about = {"scheduler": kind, "shift": shift, "steps": steps, "calls": len(run), "asked": asked}
    return about | outcome(run, asked)


def outcome(run: list[Progress], asked: float, *where: Any) -> dict[str, float]:
    """What was realised and how far off that is; the least that can be, where that is more."""
    try:
        realised = realise(run, asked, *where)
    except BadInputError as error:
        return {"least": float(str(error).partition("the least is ")[2][:4])}
    return {"realised": round(realised, 4), "off": round(realised - asked, 4)}


def realise(run: list[Progress], asked: float, grid: TokenGrid = GRID, block: int = BLOCK) -> float:
    """The mean density of a layer in a run of ``balanced``."""
    preset = PRESETS["balanced"].override({"mean_density": asked, "min_tokens": 0, "block": block})
    engine = SparseAttention(preset, strict=True)
    for step, progress in enumerate(run):
        q, k, v = torch.randn(3, 1, grid.tokens, 1, 8)
        engine(q, k, v, Call(grid=grid, layer=0, step=step, progress=progress), lambda q, k, v: q)
    return engine.stats.mean_density


def blocks() -> list[dict[str, Any]]:
    """What whole blocks make of it on small grids: a row keeps one at least."""
    run, found = list(Progress.first(20).steps()), []
    for grid, asked in product((TokenGrid(1, 16, 16), TokenGrid(3, 16, 16), GRID), ASKED):
        about = {"grid": str(grid), "blocks": math.ceil(grid.tokens / 64), "asked": asked}
        found.append(about | outcome(run, asked, grid, 64))
        print(*(f"{name} {value}" for name, value in found[-1].items()))
    return found


def show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    cells = [
        f"{row['realised']:.3f}" if "realised" in row else f">= {row['least']:.2f}" for row in rows
    ]
    where = f"{first['scheduler']:12s} {first['shift']:6g} {first['steps']:3d} steps"
    print(where, *(f"{cell:>8s}" for cell in cells), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
