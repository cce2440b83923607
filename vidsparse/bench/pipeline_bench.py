"""What ``vidsparse bench pipeline`` measures: whole denoising runs of a model of real size.

Stock diffusers first; then, quantised and compiled where that is asked for, the best dense run and
each preset, both once more with a cache where there is one. Before each run a short one builds what
is built once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from vidsparse.bench import denoising, real_size
from vidsparse.bench.caching import CachedRun, cached
from vidsparse.bench.denoising import Timed, Video
from vidsparse.bench.dense_engine import BEST_DENSE, dense_preset
from vidsparse.bench.real_size import RealSize
from vidsparse.comparison.baselines import time_dense_engines
from vidsparse.dial import density_or_note, full_density
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.checkpoints import Checkpoint
from vidsparse.pipelines.running.compiling import compile_blocks, compile_within_hooks
from vidsparse.pipelines.running.geometry import transformer_of
from vidsparse.pipelines.running.quantized import Quantize, check_quantize, quantize_in_place
from vidsparse.pipelines.running.shapes import empty_pipeline, shapes_of
from vidsparse.pipelines.session import Session
from vidsparse.preset import Preset
from vidsparse.progress import Progress
from vidsparse.step_time import Shapes

STOCK, REST = "stock", "without blocks"
WARM = 6  # steps of the run before each: dense ones, and some at full sparsity
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run.

    Attributes:
        checkpoint: Of which model.
        video: What it makes.
        steps: Denoising steps.
        layers: Blocks of each transformer; all when None.
        presets: As they will run on the model.
        device: Where.
        dtype: Of the weights.
        compiled: Whether all but stock have compiled blocks.
        quantize: What the linear layers of all but stock are in; the dtype when None.
        cache: With which all but stock run once more.
    """

    checkpoint: Checkpoint
    video: Video
    steps: int
    layers: int | None
    presets: list[Preset]
    device: str
    dtype: str
    compiled: bool = False
    quantize: Quantize | None = None
    cache: CachedRun | None = None

    @cached_property
    def grid(self) -> TokenGrid:
        """The tokens."""
        size = self.video.frames, self.video.height, self.video.width
        return self.checkpoint.geometry.sequence(*size)

    @cached_property
    def shapes(self) -> Shapes:
        """Of the whole model."""
        return shapes_of(self.checkpoint, self.grid)

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """How many blocks run, and how many there are."""
        transformer = transformer_of(empty_pipeline(self.checkpoint))
        whole = real_size.lists_of(find_model(transformer), transformer)
        run = whole if self.layers is None else real_size.fewer(whole, self.layers)
        return sum(run.values()), sum(whole.values())

    def check(self) -> None:
        """Refuse what cannot be run, before anything is.

        Raises:
            BadInputError: For a number of layers, a preset or a switch that is not possible.
        """
        if self.quantize is not None:
            check_quantize(self.quantize, self.device, self.dtype)
        self._check_cache()
        run, of = self.blocks
        for preset in self.presets:
            kept = preset.schedule.dense_layers or preset.schedule.budgets is not None
            if run < of and kept:
                raise BadInputError(
                    f"preset {preset.name!r} treats some layers apart (dense_layers or budgets), "
                    f"for which {run} of {of} cannot stand: leave --layers out, or change that "
                    "with --set"
                )
            warm_steps(preset, self.steps, run)

    def _check_cache(self) -> None:
        if self.cache is None:
            return
        pipe = empty_pipeline(self.checkpoint)
        self.cache.cache.check_pipeline(type(pipe))
        parts = pipe.components
        found = [parts[name] for name in real_size.TRANSFORMERS if parts.get(name) is not None]
        self.cache.check([type(module).__name__ for module in found], self.steps)
        if self.compiled:
            self.cache.cache.check_compiled()


def warm_steps(preset: Preset, steps: int, layers: int) -> int:
    """Fewest steps, but ``WARM``, of a run that can have the preset's mean density; else all.

    Raises:
        BadInputError: When not even a run of all ``steps`` can, and it was asked for.
    """
    if preset.policy.mean_density is None:
        return min(WARM, steps)
    density_or_note(preset, Progress.first(steps), layers=layers)
    for number in range(min(WARM, steps), steps):
        try:
            full_density(preset, Progress.first(number), layers=layers)
        except BadInputError:
            continue
        return number
    return steps


def names(settings: Settings) -> list[str]:
    """Of the rows, in the order in which they are measured."""
    rest = [REST] if settings.blocks[0] < settings.blocks[1] else []
    both = (_twice(settings, name) for name in (BEST_DENSE, *(p.name for p in settings.presets)))
    return [STOCK, *rest, *(name for pair in both for name in pair)]


def _twice(settings: Settings, name: str) -> dict[str, CachedRun | None]:
    """A row, and its like with the cache."""
    cache = settings.cache
    return {name: None} | ({} if cache is None else {cache.row_name(name): cache})


def run(settings: Settings, done: set[str], report: Report) -> None:
    """Measure every row that is not done yet; ``report`` gets each as it is."""
    to_do = [name for name in names(settings) if name not in done]
    if not to_do:
        return
    real = real_size.build(
        settings.checkpoint, layers=settings.layers, device=settings.device, dtype=settings.dtype
    )
    for row in _plain_rows(settings, real, to_do):
        report(row)
    if set(to_do) <= {STOCK, REST}:
        return
    state = _change(settings, real)
    sparse = {preset.name: partial(_sparse, preset=preset) for preset in settings.presets}
    for name, rows in {BEST_DENSE: _best_dense, **sparse}.items():
        wanted = {key: each for key, each in _twice(settings, name).items() if key in to_do}
        for row in rows(settings, real, wanted) if wanted else ():
            report(row | state)


def _plain_rows(settings: Settings, real: RealSize, to_do: list[str]) -> Iterator[dict[str, Any]]:
    plain = {"compiled": False, "quantized": None}
    if STOCK in to_do:
        yield {"name": STOCK, **plain, **_warm_and_run(settings, real, min(2, settings.steps))}
    if REST in to_do:
        with real_size.without_blocks(real):
            yield {"name": REST, **plain, **_warm_and_run(settings, real, min(2, settings.steps))}


def _change(settings: Settings, real: RealSize) -> dict[str, Any]:
    """Quantise, then compile, for good; say what was done."""
    for transformer in real.transformers():
        if settings.quantize is not None:
            quantize_in_place(transformer, settings.quantize)
        if settings.compiled:
            how = compile_blocks if settings.cache is None else compile_within_hooks
            how(transformer, dynamic=False)
    return {"compiled": settings.compiled, "quantized": settings.quantize}


def _best_dense(
    settings: Settings, real: RealSize, wanted: Mapping[str, CachedRun | None]
) -> Iterator[dict[str, Any]]:
    """Dense by the engine that is the fastest at the shape of the run."""
    shapes = settings.shapes
    shape = 1, shapes.tokens, shapes.heads, shapes.head_dim
    times = time_dense_engines(shape, getattr(torch, settings.dtype), settings.device)
    engine = min(times, key=lambda name: times[name])
    with Session(real.pipe, dense_preset(engine)):
        for name, cache in wanted.items():
            made = _warm_and_run(settings, real, min(2, settings.steps), cache)
            yield {"name": name} | made | {"engine": engine, "engine_ms": times}


def _sparse(
    settings: Settings, real: RealSize, wanted: Mapping[str, CachedRun | None], preset: Preset
) -> Iterator[dict[str, Any]]:
    with Session(real.pipe, preset) as session:
        warm = warm_steps(session.preset, settings.steps, real.blocks)
        for name, cache in wanted.items():
            made = _warm_and_run(settings, real, warm, cache)
            stats = session.stats
            yield (
                {"name": name, "preset": preset.name}
                | made
                | {
                    "mean_density": stats.mean_density,
                    "dense_steps_share": stats.dense_steps_share,
                    "plan_seconds": stats.plan_seconds,
                    "engines": dict(stats.engines),
                    "fallbacks": dict(stats.fallbacks),
                    "notes": session.notes,
                    "parameters": session.preset.plain_parameters(),
                }
            )


def _warm_and_run(
    settings: Settings, real: RealSize, warm: int, cache: CachedRun | None = None
) -> dict[str, Any]:
    first = _denoise(settings, real, warm, cache)
    made = _denoise(settings, real, settings.steps, cache)
    return made | {"warm_up_steps": warm, "warm_up_seconds": first["seconds"]}


def _denoise(
    settings: Settings, real: RealSize, steps: int, cache: CachedRun | None
) -> dict[str, Any]:
    with nullcontext() if cache is None else cached(real, cache, steps) as skips:
        if skips is None:
            made = denoising.run(real.pipe, settings.video, steps)
        else:
            made = denoising.run(real.pipe, settings.video, steps, skips.before_step)
    return {
        "seconds": made.seconds,
        "step_seconds": made.step_seconds,
        **_facts(made),
        **({} if skips is None else skips.facts(steps)),
    }


def _facts(made: Timed) -> dict[str, Any]:
    return {
        "peak_bytes": made.peak_bytes,
        "finite": bool(made.latents.isfinite().all()),
        "graphs_compiled": made.graphs,
    }
