"""``vidsparse generate``: one video from one prompt, or many from a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse.cli.job import Job, Prompt, Result, RunOptions, run_request
from vidsparse.cli.options import PresetChanges, option
from vidsparse.cli.screen import answer, complain
from vidsparse.errors import BadInputError
from vidsparse.preset import Preset

if TYPE_CHECKING:
    from vidsparse.pipelines.generate import Request


def generate(
    run: RunOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    preset: Annotated[
        str, option("A name that `vidsparse presets` lists.", panel="Sparsity")
    ] = "balanced",
    dense: Annotated[bool, option("No sparsity at all.", "--dense", panel="Sparsity")] = False,
    prompts: Annotated[
        Path | None, option("One prompt a line; -o is then a folder.", "--prompts")
    ] = None,
    output: Annotated[
        Path | None, option("The file, .mp4, .webm or .npy; by default out.mp4.", "-o", "--output")
    ] = None,
) -> None:
    """Make a video with sparse attention."""
    from vidsparse.pipelines.video import check_writable

    if prompts is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    chosen = None if dense else changes.preset(preset)
    job = run.job([prompt] if prompts is None else read_prompts(prompts))
    if prompts is None:
        paths = [output or Path("out.mp4")]
    else:
        paths = [(output or Path("out")) / f"{n:03d}.mp4" for n in range(len(job.requests))]
    for path in paths:
        check_writable(path)
    pipe = job.load()
    if prompts is None:
        _make(pipe, job, job.requests[0], chosen, paths[0])
    elif failed := make_many(pipe, job, chosen, paths):
        complain(f"{failed} of {len(paths)} prompts failed")
        raise typer.Exit(1)


def read_prompts(file: Path) -> list[str]:
    """Read the prompts of a file: blank lines and lines that start with # are skipped.

    Raises:
        BadInputError: When the file cannot be read or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"cannot read the prompts of {file}: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not found:
        raise BadInputError(f"{file} holds no prompt: write one a line")
    return found


def make_many(pipe: Any, job: Job, preset: Preset | None, paths: list[Path]) -> int:
    """Make every video, whatever becomes of the others; return how many failed."""
    failed = 0
    for request, path in zip(job.requests, paths, strict=True):
        try:
            _make(pipe, job, request, preset, path)
        except Exception as error:  # whatever one prompt does, the others are made
            complain(f"{path.name} failed ({request.prompt!r}): {error}")
            failed += 1
    return failed


def _make(pipe: Any, job: Job, request: Request, preset: Preset | None, path: Path) -> None:
    from vidsparse.pipelines.video import write_video

    label = path.stem if len(job.requests) > 1 else preset.name if preset else "dense"
    result = run_request(pipe, request, preset, label, strict=job.options.strict)
    write_video(path, result.frames, job.fps)
    answer(final_line(path, result))


def final_line(path: Path, result: Result) -> str:
    """Say where the video is, how long it took, how sparse it was and what fell back."""
    start = f"[bold]{path}[/bold] in {result.seconds:.1f} s"
    if result.stats is None:
        return f"{start}, dense"
    stats = result.stats
    lines = [
        f"{start}, mean density {stats.mean_density:.3f}, {stats.dense_steps_share:.0%} of the "
        f"steps dense, {stats.describe_fallbacks()}",
        *stats.notes,
    ]
    return "\n".join(lines)
