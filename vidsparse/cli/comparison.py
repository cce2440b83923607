"""What ``vidsparse compare`` found: as a record for programs, a sheet and a table for people."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vidsparse.cli.job import Job, Result
from vidsparse.cli.screen import plain_table
from vidsparse.files import replace_file
from vidsparse.preset import Preset

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.metrics.fidelity import Fidelity

COPIED = ("psnr", "ssim", "identical", "mean_density", "dense_steps_share", "seconds", "speedup")


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


def make_record(
    pipe: Any, job: Job, dense: Result, rows: list[Row], floor: Fidelity | None, command: str
) -> dict[str, Any]:
    """Everything a program may want, with its provenance."""
    from vidsparse.cli.doctor import versions
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
        "engine": _engines(rows),
        "versions": versions(),
        "command": command,
        "dense": {"seconds": dense.seconds},
        "noise_floor_measured": floor is not None,
        "noise_floor_psnr": floor.to_json()["psnr"] if floor else None,
        **({name: runs[0][name] for name in COPIED} if len(runs) == 1 else {}),
        "runs": runs,
    }


def _engines(rows: list[Row]) -> str:
    """The kernel engines that ran, the busiest first."""
    ran: Counter[str] = Counter()
    for row in rows:
        if row.result.stats is not None:
            ran += row.result.stats.engines
    return ", ".join(name for name, _ in ran.most_common()) or "none"


def write_record(
    folder: Path, job: Job, dense: Result, rows: list[Row], record: dict[str, Any]
) -> None:
    """Write sheet.png and compare.json."""
    from vidsparse.metrics.report.contact_sheet import contact_sheet

    clips = {f"dense  {dense.seconds:.1f} s": dense.frames}
    for row, run in zip(rows, record["runs"], strict=True):
        label = (
            f"{row.preset.name}  {row.result.seconds:.1f} s  density {run['mean_density']:.2f}, "
            f"{run['dense_steps_share']:.0%} of the steps dense  {_decibels(run)}"
        )
        clips[label] = row.result.frames
    sheet = contact_sheet(clips, title=job.requests[0].prompt)
    replace_file(folder / "sheet.png", lambda path: sheet.save(path, format="PNG"))
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / "compare.json", lambda path: path.write_text(text, encoding="utf-8"))


def _decibels(run: dict[str, Any]) -> str:
    return "identical" if run["identical"] else f"{run['psnr']:.1f} dB"


def make_table(dense: Result, rows: list[Row]) -> Table:
    """One row for each run."""
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


def footer(job: Job, rows: list[Row], record: dict[str, Any], folder: Path) -> list[str]:
    """Under what conditions the table holds, what fell back, and where the files are."""
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
