"""``vidsparse compare``: dense and sparse from the same seed, and what it cost and saved."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse.cli.job import Job, Prompt, Result, RunOptions, run_request
from vidsparse.cli.options import Json, PresetChanges, option
from vidsparse.cli.screen import answer, answer_json, busy, plain_table
from vidsparse.errors import BadInputError
from vidsparse.presets import Preset

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.metrics.fidelity import Fidelity

COPIED = (
    "psnr", "ssim", "identical", "mean_density", "dense_steps_share", "seconds", "speedup"
)  # fmt: skip


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
    record = _record(pipe, job, dense, rows, floor, command)
    _write(output, job, dense, rows, record)
    if json:
        answer_json(record)
        return
    answer(_table(dense, rows))
    for line in _footer(job, rows, record, output):
        answer(line)


@dataclass(frozen=True, slots=True)
class Row:
    """One preset against dense.

    Attributes:
        preset: The preset.
        result: Its run.
        fidelity: How close it is to the dense run.
    """

    preset: Preset
    result: Result
    fidelity: Fidelity

    @classmethod
    def measure(cls, preset: Preset, result: Result, reference: np.ndarray) -> Row:
        """Compare a run with the dense one."""
        from vidsparse.metrics.fidelity import fidelity

        return cls(preset, result, fidelity(result.frames, reference))

    @property
    def identical(self) -> bool:
        return self.fidelity.identical_frames == len(self.result.frames)

    def to_json(self, dense_seconds: float) -> dict[str, Any]:
        """Return plain JSON values."""
        stats, fidelity = self.result.stats, self.fidelity.to_json()
        assert stats is not None
        return {
            "preset": self.preset.name,
            "parameters": self.preset.parameters(),
            "seconds": self.result.seconds,
            "speedup": dense_seconds / self.result.seconds,
            "psnr": fidelity["psnr"],
            "ssim": fidelity["ssim"],
            "identical": self.identical,
            "mean_density": stats.mean_density,
            "dense_steps_share": stats.dense_steps_share,
            "fallbacks": dict(stats.fallbacks),
            "notes": list(stats.notes),
            "fidelity": fidelity,
        }


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


def _record(
    pipe: Any, job: Job, dense: Result, rows: list[Row], floor: Fidelity | None, command: str
) -> dict[str, Any]:
    """Everything a program may want, with its provenance."""
    from vidsparse.cli.doctor import versions
    from vidsparse.kernels.attention import choose_engine
    from vidsparse.pipelines.generate import geometry_of

    request = job.requests[0]
    grid = geometry_of(pipe).token_grid(request.frames, request.height, request.width)
    runs = [row.to_json(dense.seconds) for row in rows]
    names = ("prompt", "seed", "steps", "guidance", "frames", "height", "width")
    return {
        **{name: getattr(request, name) for name in names},
        "model": str(job.checkpoint.source),
        "grid": str(grid),
        "tokens": grid.tokens,
        "device": job.device,
        "dtype": job.dtype,
        "engine": choose_engine(job.device.partition(":")[0]).engine,
        "versions": versions(),
        "command": command,
        "dense": {"seconds": dense.seconds},
        "noise_floor_measured": floor is not None,
        "noise_floor_psnr": floor.to_json()["psnr"] if floor else None,
        **({name: runs[0][name] for name in COPIED} if len(runs) == 1 else {}),
        "runs": runs,
    }


def _write(folder: Path, job: Job, dense: Result, rows: list[Row], record: dict[str, Any]) -> None:
    import json

    from vidsparse.cli.files import replace_file
    from vidsparse.metrics.report.contact_sheet import contact_sheet

    clips = {f"dense  {dense.seconds:.1f} s": dense.frames}
    for row, run in zip(rows, record["runs"], strict=True):
        label = (
            f"{row.preset.name}  {row.result.seconds:.1f} s  density {run['mean_density']:.2f}  "
            f"{_decibels(run)}"
        )
        clips[label] = row.result.frames
    sheet = contact_sheet(clips, title=job.requests[0].prompt)
    replace_file(folder / "sheet.png", lambda path: sheet.save(path, format="PNG"))
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / "compare.json", lambda path: path.write_text(text, encoding="utf-8"))


def _decibels(run: dict[str, Any]) -> str:
    return "identical" if run["identical"] else f"{run['psnr']:.1f} dB"


def _table(dense: Result, rows: list[Row]) -> Any:
    columns = ("time", "speed-up", "mean density", "dense steps", "PSNR", "SSIM")
    table = plain_table(preset="left", **dict.fromkeys(columns, "right"))
    table.add_row("dense", f"{dense.seconds:.1f} s", "1.00x", "1.000", "100%", "", "")
    for row in rows:
        run = row.to_json(dense.seconds)
        table.add_row(
            f"[bold]{run['preset']}[/bold]",
            f"{run['seconds']:.1f} s",
            f"{run['speedup']:.2f}x",
            f"{run['mean_density']:.3f}",
            f"{run['dense_steps_share']:.0%}",
            _decibels(run),
            f"{run['ssim']:.3f}",
        )
    return table


def _footer(job: Job, rows: list[Row], record: dict[str, Any], folder: Path) -> list[str]:
    if not record["noise_floor_measured"]:
        floor = "noise floor not measured (--noise-floor)"
    elif record["noise_floor_psnr"] is None:
        floor = "noise floor: two dense engines gave identical frames"
    else:
        floor = (
            f"noise floor, dense against dense by another engine: "
            f"{record['noise_floor_psnr']:.1f} dB"
        )
    fell_back = [
        f"{row.preset.name}: {row.result.stats.describe_fallbacks()}"
        for row in rows
        if row.result.stats and row.result.stats.fallbacks
    ]
    return [
        "",
        f"[dim]seed {record['seed']}, {record['steps']} steps, {record['frames']} x "
        f"{record['height']} x {record['width']}, {record['tokens']:,} tokens, engine "
        f"{record['engine']} on {record['device']} in {record['dtype']}[/dim]",
        f"[dim]{floor}[/dim]",
        *fell_back,
        *dict.fromkeys(line for run in record["runs"] for line in run["notes"]),
        f"{folder}: dense.mp4, {', '.join(f'{row.preset.name}.mp4' for row in rows)}, sheet.png, "
        "compare.json",
    ]
