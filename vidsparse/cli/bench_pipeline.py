"""``vidsparse bench pipeline``: whole denoising runs, stock, best dense and with presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from vidsparse.cli.options import PresetChanges, option
from vidsparse.cli.plan import read_size
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.bench.caching import CachedRun
    from vidsparse.bench.pipeline_bench import Settings
    from vidsparse.preset import Preset

PANEL = "Pipeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What ``bench pipeline`` measures."""

    model: Annotated[
        str | None,
        option(
            "A name such as wan2.1-14b, hunyuanvideo or flux.1-dev, or a folder with configs; "
            "weights are random.",
            panel=PANEL,
        ),
    ] = None
    size: Annotated[str | None, option("WIDTHxHEIGHT in pixels.", panel=PANEL)] = None
    frames: Annotated[int | None, option("Frames of the video.", panel=PANEL)] = None
    steps: Annotated[int | None, option("Denoising steps.", panel=PANEL)] = None
    layers: Annotated[
        int | None, option("Blocks that run; the record extends them to all.", panel=PANEL)
    ] = None
    preset: Annotated[str, option("With commas between, each NAME or NAME:int8.", panel=PANEL)] = (
        "balanced,fast"
    )
    precision: Annotated[
        str | None,
        option(
            "What attention is computed in: model or int8; of kernels, the engine int8.",
            panel=PANEL,
        ),
    ] = None
    set: Annotated[
        list[str] | None, option("KEY=VALUE: change the presets; repeatable.", panel=PANEL)
    ] = None
    compile: Annotated[
        bool, option("Compile the blocks of all but stock.", "--compile", panel=PANEL)
    ] = False
    quantize: Annotated[
        str | None,
        option(
            "Linear layers of all but stock, as in `vidsparse generate`: fp8, int8 (weights alone) "
            "or int8-dynamic.",
            panel=PANEL,
        ),
    ] = None
    cache: Annotated[
        str | None,
        option(
            "All but stock once more with first-block, mag or taylorseer, with settings after =.",
            panel=PANEL,
        ),
    ] = None
    skip_share: Annotated[
        float | None,
        option(
            "Share of the steps that first-block is told to skip, as random weights say nothing of "
            "it.",
            "--skip-share",
            panel=PANEL,
        ),
    ] = None
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.", panel=PANEL)] = "auto"
    dtype: Annotated[str | None, option("float32, bfloat16 or float16.", panel=PANEL)] = None


def bench_pipeline(
    options: PipelineOptions, command: str, output: Path | None, *, json: bool, overwrite: bool
) -> None:
    """Measure what is not in the record yet, and show it.

    Raises:
        BadInputError: For what cannot be measured.
    """
    from vidsparse.bench import pipeline_bench
    from vidsparse.bench.pipeline_record import Record

    settings = read_settings(options)
    settings.check()
    record = Record(settings, command, output, overwrite=overwrite)
    wanted = pipeline_bench.names(settings)
    if found := [name for name in wanted if name in record.done]:
        note(f"measured before: {', '.join(found)}")
    note(_about(settings))

    def keep(row: dict[str, Any]) -> None:
        record.add(row)
        left = sum(name not in record.done for name in wanted)
        note(f"{row['name']}: {row['seconds']:.2f} s, {left} left")

    pipeline_bench.run(settings, record.done, keep)
    if json:
        answer_json(record.content())
        return
    answer(_table(record.told(), settings))
    for row in record.rows:
        said = [f"what is skipped is {row['skips']}"] if "skips" in row else []
        for sentence in (*said, *row.get("notes", ())):
            note(f"{row['name']}: {sentence}")


def read_settings(options: PipelineOptions) -> Settings:
    """Check everything that can be checked before the model is built.

    Raises:
        BadInputError: For what is not possible.
    """
    from vidsparse.bench.denoising import Video
    from vidsparse.bench.pipeline_bench import Settings
    from vidsparse.pipelines.running import load
    from vidsparse.pipelines.running.checkpoints import find_checkpoint

    if options.model is None:
        raise BadInputError("give --model, such as wan2.1-14b, or a folder with configs")
    checkpoint = find_checkpoint(options.model)
    device = load.resolve_device(options.device)
    width, height = (None, None) if options.size is None else read_size(options.size)
    size = checkpoint.size(options.frames, height, width)
    guidance = checkpoint.guidance if checkpoint.takes_guidance else None
    changes = PresetChanges(set=options.set, precision=options.precision)
    names = [name.strip() for name in options.preset.split(",")]
    presets = [_preset(name, changes, checkpoint.release) for name in names]
    if len({preset.name for preset in presets}) < len(presets):
        raise BadInputError(f"--preset takes presets of different names, got {options.preset}")
    return Settings(
        checkpoint=checkpoint,
        video=Video(**size, guidance=guidance),
        steps=checkpoint.or_default("steps", options.steps),
        layers=options.layers,
        presets=presets,
        device=device,
        dtype=load.resolve_dtype(options.dtype, device),
        compiled=options.compile,
        quantize=cast("Any", options.quantize),
        cache=_cache(options),
    )


def _cache(options: PipelineOptions) -> CachedRun | None:
    from vidsparse.bench.caching import CachedRun
    from vidsparse.pipelines.running.caches import read_cache

    if options.cache is None and options.skip_share is not None:
        raise BadInputError("--skip-share is of a cache: give --cache too, such as first-block")
    if options.cache is None:
        return None
    cache = read_cache(options.cache)
    return CachedRun(text=options.cache, cache=cache, skip_share=options.skip_share)


def _preset(text: str, changes: PresetChanges, release: str | None) -> Preset:
    """A preset as it is written, NAME or NAME:PRECISION, which then stands in its name.

    What is published of it for the model is taken, as in a session.
    """
    from vidsparse.pipelines.published import apply

    name, _, precision = text.rpartition(":")
    if precision not in ("model", "int8") or not name:
        return apply(changes.preset(text), release)[0]
    found = apply(replace(changes, precision=precision).preset(name), release)[0]
    return replace(found, name=f"{found.name}-{precision}")


def _about(settings: Settings) -> str:
    run, of = settings.blocks
    fewer = f", {run} of {of} blocks" if run < of else ""
    return (
        f"{settings.checkpoint.source}: {settings.grid}, {settings.grid.tokens:,} tokens, "
        f"{settings.steps} steps{fewer}, random weights, no text encoder and no VAE"
    )


def _table(rows: list[dict[str, Any]], settings: Settings) -> Any:
    run, of = settings.blocks
    table = plain_table(
        run="left", seconds="right", first_step="right", last_step="right", density="right",
        **({} if settings.cache is None else {"skipped calls": "right"}),
        **({f"all {of} blocks": "right"} if run < of else {}),
        **{"times stock": "right", "times best dense": "right"},
    )  # fmt: skip
    for row in rows:
        steps, density = row["step_seconds"], row.get("mean_density")
        whole = row.get("whole_seconds")
        table.add_row(
            _label(row), f"{row['seconds']:.2f}", f"{steps[0]:.3f}", f"{steps[-1]:.3f}",
            "" if density is None else f"{density:.3f}",
            *([] if settings.cache is None else [_skipped(row)]),
            *([f"{whole:.1f}" if whole else ""] if run < of else []),
            *(_times(row.get(key)) for key in ("over_stock", "over_best_dense")),
        )  # fmt: skip
    return table


def _label(row: dict[str, Any]) -> str:
    how = [row["engine"]] if "engine" in row else []
    how += [row["quantized"]] if row["quantized"] else []
    how += ["compiled"] if row["compiled"] else []
    return f"{row['name']} ({', '.join(how)})" if how else row["name"]


def _skipped(row: dict[str, Any]) -> str:
    if "forwards" not in row:
        return ""
    return f"{row['forwards_skipped']} of {row['forwards']}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
