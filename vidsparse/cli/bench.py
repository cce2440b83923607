"""``vidsparse bench``: speed, measured here, as ratios."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vidsparse.cli.bench_pipeline import PipelineOptions, bench_pipeline
from vidsparse.cli.options import Json, Overwrite, check_free
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError


class Part(StrEnum):
    """What can be measured.

    Attributes:
        KERNELS: Every kernel engine at real shapes, beside dense attention.
        PIPELINE: Whole denoising runs of a model of real size with random weights.
    """

    KERNELS = "kernels"
    PIPELINE = "pipeline"


PANEL = "Kernels"
OF_BOTH = ("precision",)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """What ``bench kernels`` measures."""

    shape: Annotated[
        list[str] | None, typer.Option(help="A shape; repeat for more.", rich_help_panel=PANEL)
    ] = None
    density: Annotated[
        list[float] | None, typer.Option(help="A density; repeat for more.", rich_help_panel=PANEL)
    ] = None
    engine: Annotated[
        list[str] | None, typer.Option(help="An engine; repeat for more.", rich_help_panel=PANEL)
    ] = None
    rounds: Annotated[
        int, typer.Option(min=1, max=10_000, help="Timed rounds.", rich_help_panel=PANEL)
    ] = 7
    q_block: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Tokens in a query block.", rich_help_panel=PANEL),
    ] = None
    kv_block: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Tokens in a key block.", rich_help_panel=PANEL),
    ] = None
    radial: Annotated[bool, typer.Option(help="Run radial lists too.", rich_help_panel=PANEL)] = (
        True
    )


def bench(
    ctx: typer.Context,
    kernels: KernelOptions,
    pipeline: PipelineOptions,
    part: Annotated[Part, typer.Argument(help="What to measure.")] = Part.KERNELS,
    json: Json = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write JSON here.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how fast sparse attention is here, against the best dense attention."""
    others = kernels if part is Part.PIPELINE else pipeline
    if given := [
        f.name
        for f in dataclasses.fields(others)
        if f.name not in OF_BOTH and getattr(others, f.name) != f.default
    ]:
        other = Part.KERNELS if part is Part.PIPELINE else Part.PIPELINE
        name = given[0].replace("_", "-")
        raise BadInputError(f"--{name} belongs to `vidsparse bench {other.value}`: leave it out")
    command = shlex.join(["vidsparse", *ctx.obj])
    if part is Part.PIPELINE:
        bench_pipeline(pipeline, command, output, json=json, overwrite=overwrite)
        return
    if output is not None:
        check_free(output, overwrite=overwrite)
    engines = _engines(kernels.engine or [], pipeline.precision)
    _bench_kernels(kernels, engines, command, output, json=json)


def _engines(named: list[str], precision: str | None) -> tuple[str, ...]:
    """The engines to run; none is all that can. Eight bits are an engine by that name."""
    from vidsparse.preset import Precision

    if precision not in (None, *Precision):
        raise BadInputError(f"--precision must be {' or '.join(Precision)}, got {precision!r}")
    of_precision = [] if precision in (None, Precision.MODEL) else [precision]
    return tuple(dict.fromkeys([*named, *of_precision]))


def _bench_kernels(
    options: KernelOptions, engines: tuple[str, ...], command: str, output: Path | None, *,
    json: bool,
) -> None:  # fmt: skip
    from vidsparse.bench import kernel_bench
    from vidsparse.kernels.engines.table import check_engine

    for name in engines:
        check_engine(name)
    for share in options.density or ():
        if not 0 < share <= 1:
            raise BadInputError(f"--density must be in (0, 1], got {share:g}")
    settings = kernel_bench.Settings(
        shapes=tuple(options.shape or ()),
        densities=tuple(options.density or kernel_bench.DENSITIES),
        engines=engines,
        rounds=options.rounds,
        radial=options.radial,
        q_block=options.q_block or kernel_bench.usual_block(),
        kv_block=options.kv_block or kernel_bench.usual_block(),
    )
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        note(_line(row))
        if output is not None:  # a run that is cut short keeps what it measured
            kernel_bench.write(output, kernel_bench.record(rows, command))

    kernel_bench.run(settings, keep)
    found = kernel_bench.record(rows, command)
    if json:
        answer_json(found)
    else:
        answer(_table(rows))


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['shape']} {row['pattern']} {row['engine']}: failed: {row['failed']}"
    return (
        f"{row['shape']} {row['pattern']} density {row['density']:.3f} {row['engine']}: "
        f"{row['ms']:.2f} ms, {row['tflops']:.0f} TFLOP/s, efficiency {row['efficiency']:.3f}"
        f"{_memory(row)}"
    )


def _memory(row: dict[str, Any]) -> str:
    extra = row["extra_bytes"]
    return "" if extra is None else f", {extra / 1e6:.1f} MB beyond inputs and output"


def _table(rows: list[dict[str, Any]]) -> Any:
    table = plain_table(
        shape="left", lists="left", density="right", engine="left", ms="right",
        **{"TFLOP/s": "right", "efficiency": "right", "speed-up": "right", "error": "right"},
    )  # fmt: skip
    for row in rows:
        if "failed" in row:
            continue
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        table.add_row(
            row["shape"], row["pattern"], f"{row['density']:.3f}", row["engine"],
            f"{row['ms']:.2f}", f"{row['tflops']:.2f}" if row["tflops"] < 10 else
            f"{row['tflops']:.0f}", f"{row['efficiency']:.3f}", f"{row['speedup']:.2f}x", error,
        )  # fmt: skip
    return table
