"""What ``vidsparse bench pipeline`` measures: whole denoising runs of a model of real size.

Stock diffusers first; then, quantized and compiled where that is asked for, the best dense run and
each preset. Before each run a short one builds what is built once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vidsparse.bench import denoising, real_size
from vidsparse.bench.denoising import Timed, Video
from vidsparse.bench.dense_engine import BEST_DENSE, DenseEngine, dense_preset
from vidsparse.bench.quantized import Quantize, check_torchao, quantize_blocks
from vidsparse.bench.real_size import RealSize
from vidsparse.comparison.baselines import time_dense_engines
from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.checkpoints import Checkpoint
from vidsparse.pipelines.running.geometry import transformer_of
from vidsparse.pipelines.running.shapes import empty_pipeline, shapes_of
from vidsparse.pipelines.session import Session
from vidsparse.preset import Preset
from vidsparse.progress import Progress
from vidsparse.run_time import Shapes

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
            check_torchao()
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


def warm_steps(preset: Preset, steps: int, layers: int) -> int:
    """Fewest steps, but ``WARM``, of a run that can have the preset's mean density.

    Raises:
        BadInputError: When not even a run of all ``steps`` can.
    """
    if preset.policy.mean_density is None:
        return min(WARM, steps)
    full_density(preset, Progress.first(steps), layers=layers)
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
    return [STOCK, *rest, BEST_DENSE, *(preset.name for preset in settings.presets)]


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
    if BEST_DENSE in to_do:
        report({"name": BEST_DENSE, **state, **_best_dense(settings, real)})
    for preset in settings.presets:
        if preset.name in to_do:
            report({"name": preset.name, **state, **_sparse(settings, real, preset)})


def _plain_rows(settings: Settings, real: RealSize, to_do: list[str]) -> Iterator[dict[str, Any]]:
    plain = {"compiled": False, "quantized": None}
    if STOCK in to_do:
        yield {"name": STOCK, **plain, **_warm_and_run(settings, real, min(2, settings.steps))}
    if REST in to_do:
        with real_size.without_blocks(real):
            yield {"name": REST, **plain, **_warm_and_run(settings, real, min(2, settings.steps))}


def _change(settings: Settings, real: RealSize) -> dict[str, Any]:
    """Quantize, then compile, for good; say what was done."""
    for transformer in real.transformers():
        if settings.quantize is not None:
            quantize_blocks(transformer, real.lists, settings.quantize)
        if settings.compiled:
            _compile(transformer)
    quantized = settings.quantize and settings.quantize.value
    return {"compiled": settings.compiled, "quantized": quantized}


def _compile(transformer: Any) -> None:
    try:
        transformer.compile_repeated_blocks(dynamic=False)
    except (ValueError, AttributeError) as error:
        raise BadInputError(
            f"diffusers does not know which blocks of {type(transformer).__name__} to compile "
            f"({error}): leave --compile out"
        ) from error


def _start_over(settings: Settings) -> None:
    """Forget compiled code: each session compiles once more, which torch does eight times alone."""
    if settings.compiled:
        torch._dynamo.reset()


def _best_dense(settings: Settings, real: RealSize) -> dict[str, Any]:
    """Dense by the engine that is the fastest at the shape of the run."""
    _start_over(settings)
    shapes = settings.shapes
    shape = 1, shapes.tokens, shapes.heads, shapes.head_dim
    times = time_dense_engines(shape, getattr(torch, settings.dtype), settings.device)
    engine = min(times, key=lambda name: times[name])
    layers = [
        layer
        for transformer in real.transformers()
        for layer in find_model(transformer).layers(transformer)
    ]
    with ExitStack() as stack:
        stack.enter_context(Session(real.pipe, dense_preset()))
        stack.enter_context(DenseEngine(layers, engine))
        made = _warm_and_run(settings, real, min(2, settings.steps))
    return made | {"engine": engine, "engine_ms": times}


def _sparse(settings: Settings, real: RealSize, preset: Preset) -> dict[str, Any]:
    _start_over(settings)
    with Session(real.pipe, preset) as session:
        made = _warm_and_run(
            settings, real, warm_steps(session.preset, settings.steps, real.blocks)
        )
        stats = session.stats
        return made | {
            "mean_density": stats.mean_density,
            "dense_steps_share": stats.dense_steps_share,
            "plan_seconds": stats.plan_seconds,
            "engines": dict(stats.engines),
            "fallbacks": dict(stats.fallbacks),
            "notes": session.notes,
            "parameters": session.preset.plain_parameters(),
        }


def _warm_and_run(settings: Settings, real: RealSize, warm: int) -> dict[str, Any]:
    first = denoising.run(real.pipe, settings.video, warm)
    made = denoising.run(real.pipe, settings.video, settings.steps)
    return {
        "seconds": made.seconds,
        "step_seconds": made.step_seconds,
        "warm_up_steps": warm,
        "warm_up_seconds": first.seconds,
        **_facts(made),
    }


def _facts(made: Timed) -> dict[str, Any]:
    return {
        "peak_bytes": made.peak_bytes,
        "finite": bool(made.latents.isfinite().all()),
        "graphs_compiled": made.graphs,
    }
