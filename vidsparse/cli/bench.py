"""``vidsparse bench``: speed, measured here, as ratios."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vidsparse.cli.options import Json, Overwrite, check_free
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError


class Part(StrEnum):
    """What can be measured.

    Attributes:
        KERNELS: Every kernel engine at real shapes, beside dense attention.
    """

    KERNELS = "kernels"


def bench(
    ctx: typer.Context,
    part: Annotated[Part, typer.Argument(help="What to measure.")] = Part.KERNELS,
    shape: Annotated[list[str] | None, typer.Option(help="A shape; repeat for more.")] = None,
    density: Annotated[list[float] | None, typer.Option(help="A density; repeat for more.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="An engine; repeat for more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Timed rounds.")] = 7,
    q_block: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Tokens in a query block.")
    ] = None,
    kv_block: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Tokens in a key block.")
    ] = None,
    radial: Annotated[bool, typer.Option(help="Run radial lists too.")] = True,
    json: Json = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write JSON here.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how fast sparse attention is here, against the best dense attention."""
    from vidsparse.bench import kernel_bench
    from vidsparse.kernels.engines.table import check_engine

    if output is not None:
        check_free(output, overwrite=overwrite)
    for name in engine or ():
        check_engine(name)
    for share in density or ():
        if not 0 < share <= 1:
            raise BadInputError(f"--density must be in (0, 1], got {share:g}")
    settings = kernel_bench.Settings(
        shapes=tuple(shape or ()),
        densities=tuple(density or kernel_bench.DENSITIES),
        engines=tuple(engine or ()),
        rounds=rounds,
        radial=radial,
        q_block=q_block or kernel_bench.usual_block(),
        kv_block=kv_block or kernel_bench.usual_block(),
    )
    command = shlex.join(["vidsparse", *ctx.obj])
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
