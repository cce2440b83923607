"""``vidsparse compare``: dense and sparse from the same seed, and what it cost and saved."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse.cli.comparison import Row, footer, make_record, make_table, write_record
from vidsparse.cli.job import Job, Prompt, Result, RunOptions, run_request
from vidsparse.cli.options import Json, PresetChanges, option
from vidsparse.cli.screen import answer, answer_json, busy
from vidsparse.errors import BadInputError
from vidsparse.preset import Preset

if TYPE_CHECKING:
    from vidsparse.metrics.fidelity import Fidelity


def compare(
    context: typer.Context,
    run: RunOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    preset: Annotated[
        str, option("Names with commas between, such as draft,radial.", panel="Sparsity")
    ] = "balanced",
    output: Annotated[
        Path, option("Folder for the videos, sheet.png and compare.json.", "-o", "--output")
    ] = Path("compare"),
    noise_floor: Annotated[
        bool, option("Also compare dense with dense by another engine.", "--noise-floor")
    ] = False,
    json: Json = False,
) -> None:
    """Make a dense and a sparse video from the same seed, and compare them."""
    from vidsparse.pipelines.generate import warm_up

    presets = [changes.preset(name.strip()) for name in preset.split(",") if name.strip()]
    if not presets or len({chosen.name for chosen in presets}) < len(presets):
        raise BadInputError(f"--preset takes different names with commas between, got {preset!r}")
    job = run.job([prompt])
    _check_folder(output, ["dense", *(chosen.name for chosen in presets)])
    pipe = job.load()
    with busy("warming up"):
        warm_up(pipe, job.requests[0])
    dense = _run(pipe, job, None, output)
    floor = _noise_floor(pipe, job, dense) if noise_floor else None
    rows = [
        Row.measure(chosen, _run(pipe, job, chosen, output), dense.frames) for chosen in presets
    ]
    command = shlex.join(["vidsparse", *context.obj])
    record = make_record(pipe, job, dense, rows, floor, command)
    write_record(output, job, dense, rows, record)
    if json:
        answer_json(record)
        return
    answer(make_table(dense, rows))
    for line in footer(job, rows, record, output):
        answer(line)


def _check_folder(folder: Path, names: list[str]) -> None:
    from vidsparse.pipelines.video import check_writable

    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file: -o names the folder that compare writes to")
    for name in names:
        check_writable(folder / f"{name}.mp4")


def _run(pipe: Any, job: Job, preset: Preset | None, folder: Path) -> Result:
    from vidsparse.pipelines.video import write_video

    name = preset.name if preset else "dense"
    result = run_request(pipe, job.requests[0], preset, f"{name:9}", strict=job.options.strict)
    write_video(folder / f"{name}.mp4", result.frames, job.fps)
    return result


def _noise_floor(pipe: Any, job: Job, dense: Result) -> Fidelity:
    """Compare the dense run with one whose attention is summed in another order."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from vidsparse.metrics.fidelity import fidelity

    with sdpa_kernel(SDPBackend.MATH):
        again = run_request(pipe, job.requests[0], None, "dense, other engine")
    return fidelity(again.frames, dense.frames)
