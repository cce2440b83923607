"""One generation with everything that is measured about it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidsparse.comparison.attention_error import ErrorMeter, by_layer_and_step
from vidsparse.comparison.machine import here
from vidsparse.metrics.latency import Stages
from vidsparse.metrics.report.results import Grid, Run
from vidsparse.preset import Preset
from vidsparse.stats import Stats

if TYPE_CHECKING:
    from vidsparse.pipelines.running.generate import OnStep, Request

DENSE: dict[str, Any] = {  # of a run that no session saw
    "mean_density": 1.0,
    "dense_steps_share": 1.0,
    "sigmas": [],
    "density": [],
    "engines": {},
    "fallbacks": {},
    "notes": [],
}


class Measured(NamedTuple):
    """A generation.

    Attributes:
        run: What was measured.
        frames: uint8 ``(frames, height, width, 3)``.
        latents: A sample of the latents after each step, float32 ``(steps, values)``; none where
            the pipeline steps copies of its scheduler alone.
    """

    run: Run
    frames: np.ndarray
    latents: np.ndarray


def measure(
    pipe: Any,
    request: Request,
    preset: Preset | None,
    on_step: OnStep,
    *,
    strict: bool = False,
    reference: np.ndarray | None = None,
    compiled: bool = False,
) -> Measured:
    """Generate one video, dense (as diffusers does it) without a preset, and measure it.

    Args:
        pipe: The pipeline; it is left as it was.
        request: What to generate.
        preset: What to make sparse.
        on_step: Told of every step.
        strict: Raise where a call would fall back to dense.
        reference: Latents of the dense run.
        compiled: Whether its code is compiled, which happens once for each shape: the first step
            is then done once before, untimed.
    """
    from vidsparse.pipelines.running.checkpoints import geometry_of
    from vidsparse.pipelines.running.generate import first_step, generate
    from vidsparse.pipelines.running.stage_timing import Probe
    from vidsparse.pipelines.session import Session

    device = torch.device(getattr(pipe, "_execution_device", pipe.device))
    machine = here()
    attached = Session(pipe, preset, strict=strict) if preset else nullcontext()
    with attached as session, Probe(pipe) as probe:
        if compiled:
            first_step(pipe, request)
            probe.forget()
            if session:
                session.stats.forget()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = perf_counter()
        frames = generate(pipe, request, on_step)
        total = perf_counter() - started
    stats = session.stats if session else Stats()
    stages = probe.seconds
    stages["attention"] -= stats.plan_seconds
    latents = np.zeros((0, 0), np.float32)
    if probe.latents:
        latents = torch.stack(probe.latents).cpu().numpy()
    error = latent_error(latents, reference) if session and reference is not None else []
    run = Run(
        stages=Stages(total=total, planning=stats.plan_seconds, **stages),
        frames_sha256=hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest(),
        grid=str(geometry_of(pipe).token_grid(request.frames, request.height, request.width)),
        attention_shape=list(probe.shape or ()),
        machine=machine,
        latent_error=error,
        peak_memory_bytes=(
            torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        ),
        **(sparsity(stats) if session else DENSE),
    )
    return Measured(run, frames, latents)


def attention_error(pipe: Any, request: Request, preset: Preset, on_step: OnStep) -> Grid:
    """Generate once more, untimed; relative L1 of attention outputs, ``[layer][step]``."""
    from vidsparse.pipelines.running.generate import generate
    from vidsparse.pipelines.session import Session

    meter = ErrorMeter()
    with Session(pipe, preset) as session:
        session.observe(meter)
        generate(pipe, request, on_step)
        layers, steps = _extent(session.stats)
        return meter.relative_l1(layers, steps)


def dense_by_another_engine(pipe: Any, request: Request, on_step: OnStep) -> tuple[str, np.ndarray]:
    """Generate once densely with attention summed in another order: say how, give the frames."""
    from vidsparse.comparison.baselines import another_engine
    from vidsparse.pipelines.running.generate import generate
    from vidsparse.pipelines.running.stage_timing import Probe

    name, engine = another_engine(torch.device(getattr(pipe, "_execution_device", pipe.device)))
    with Probe(pipe), engine:  # compiled code then leaves the choice to each call
        frames = generate(pipe, request, on_step)
    return f"dense against dense with PyTorch's {name}", frames


def warm_up(pipe: Any, request: Request, preset: Preset | None) -> None:
    """Run a step at full sparsity, or a dense one and the decoder, so that it is not timed.

    Under a probe, as what is timed: code that is compiled for it is the same.
    """
    from vidsparse.pipelines.running import generate
    from vidsparse.pipelines.running.stage_timing import Probe
    from vidsparse.pipelines.session import Session

    if preset is None:
        with Probe(pipe):
            generate.generate(pipe, replace(request, steps=generate.fewest_steps(pipe, request)))
        return
    at_once = {"warmup": 0.0, "ramp_until": 0.0, "cooldown": 0.0, "dense_layers": 0}
    with Session(pipe, preset.override(at_once)), Probe(pipe):
        generate.warm_up(pipe, request)


def latent_error(latents: np.ndarray, reference: np.ndarray) -> list[float]:
    """Relative root mean square error of each step; both ``(steps, values)``."""
    distance = np.linalg.norm(latents - reference, axis=1)
    return (distance / np.maximum(np.linalg.norm(reference, axis=1), 1e-30)).tolist()


def sparsity(stats: Stats) -> dict[str, Any]:
    """Every fact of a run that a session knows."""
    by_call = {key: density.float().cpu() for key, density in stats.calls.items()}
    layers, steps = _extent(stats)
    means = {key: float(density.mean()) for key, density in by_call.items()}
    heads: dict[int, list[Tensor]] = {}
    for key, density in by_call.items():
        if means[key] < 1:
            heads.setdefault(key.layer, []).append(density)
    return {
        "mean_density": stats.mean_density,
        "dense_steps_share": stats.dense_steps_share,
        "sigmas": [stats.sigmas[step] for step in sorted(stats.sigmas)],
        "density": by_layer_and_step(means, layers, steps),
        "head_density": _filled([_head_means(heads.get(layer, [])) for layer in range(layers)]),
        "engines": dict(stats.engines),
        "fallbacks": dict(stats.fallbacks),
        "notes": list(stats.notes),
    }


def _extent(stats: Stats) -> tuple[int, int]:
    """How many layers and steps there were."""
    return tuple(1 + max(getattr(key, name) for key in stats.calls) for name in ("layer", "step"))  # type: ignore[return-value]


def _filled(rows: list[list[float]]) -> list[list[float]]:
    """Rows of one length: layers that were always dense, or whose heads share a plan, have all."""
    heads = max(map(len, rows))
    return [row if len(row) == heads else (row or [1.0]) * heads for row in rows]


def _head_means(calls: list[Tensor]) -> list[float]:
    """Mean density of each head; of one for all where every call shared its plan."""
    if not calls:
        return []
    heads = max(density.numel() for density in calls)
    return torch.stack([density.expand(heads) for density in calls]).mean(dim=0).tolist()
