"""``vidsparse generate``: a video or image from one prompt, or many from a file of prompts."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse.cli.job import Job, Prompt, Result, RunOptions, maybe_pool, run_request
from vidsparse.cli.options import PresetChanges, option, ray_option
from vidsparse.cli.screen import answer, complain
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.cli.on_ray import Pool
    from vidsparse.pipelines.generate import Request
    from vidsparse.preset import Preset


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
        Path | None,
        option("The file, .mp4, .webm or .npy, of an image .png or .npy.", "-o", "--output"),
    ] = None,
    ray: Annotated[str | None, ray_option()] = None,
) -> None:
    """Make a video or an image with sparse attention."""
    from vidsparse.pipelines.video import check_writable

    if prompts is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    chosen = None if dense else changes.preset(preset)
    job = run.job([prompt] if prompts is None else read_prompts(prompts))
    if prompts is None:
        paths = [output or Path(f"out{job.suffix}")]
    else:
        folder = output or Path("out")
        paths = [folder / f"{n:03d}{job.suffix}" for n in range(len(job.requests))]
    for path in paths:
        check_writable(path, image=job.checkpoint.image)
    work = GenerateWork(job, chosen, paths)
    if ray is not None:
        with maybe_pool(ray, job) as pool:
            assert pool is not None
            failed = work.do_on(pool)
    elif prompts is None:
        answer(work.do_piece(0))
        return
    else:
        failed = work.do()
    if failed:
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


class GenerateWork:
    """Makes a video for each request, whatever becomes of the others.

    Args:
        job: What to make.
        preset: What to make sparse; None for dense.
        paths: A file for each request.
    """

    def __init__(self, job: Job, preset: Preset | None, paths: list[Path]) -> None:
        self._job, self._preset, self._paths = job, preset, paths
        self._pipe: Any = None

    def do(self) -> int:
        """Make them all here; return how many failed."""
        self._load()  # what fails here fails for all
        failed = 0
        for number in range(len(self._paths)):
            try:
                answer(self.do_piece(number))
            except Exception as error:
                self._complain(number, error)
                failed += 1
        return failed

    def do_on(self, pool: Pool) -> int:
        """Make them all on a cluster; return how many failed."""
        started, failed = time.time(), Counter[str]()
        pieces = [Video(path, request, started) for path, request in self._work()]

        def report(number: int, outcome: Any, seconds: float) -> None:
            if isinstance(outcome, Exception):
                self._complain(number, outcome)
                failed["prompts"] += 1
            else:
                answer(outcome or f"[bold]{self._paths[number]}[/bold]")

        pool.do(self, pieces, report)
        return failed["prompts"]

    def do_piece(self, number: int) -> str:
        """Make one video; say what became of it."""
        self._load()
        path, request = self._paths[number], self._job.requests[number]
        preset, many = self._preset, len(self._paths) > 1
        label = path.stem if many else preset.name if preset else "dense"
        strict = self._job.options.strict
        result = run_request(self._pipe, request, preset, label, strict=strict)
        self._job.write(path, result.frames)
        return final_line(path, result)

    def _load(self) -> None:
        if self._pipe is None:
            self._pipe = self._job.load()

    def _work(self) -> list[tuple[Path, Request]]:
        return list(zip(self._paths, self._job.requests, strict=True))

    def _complain(self, number: int, error: Exception) -> None:
        prompt = self._job.requests[number].prompt
        complain(f"{self._paths[number].name} failed ({prompt!r}): {error}")


class Video:
    """One video as a piece of work.

    Attributes:
        label: For a person.

    Args:
        path: Its file.
        request: What it shows.
        started: When the work began, in seconds since the epoch.
    """

    def __init__(self, path: Path, request: Request, started: float) -> None:
        self.label = f"{path.name} ({request.prompt!r})"
        self._path, self._started = path, started

    def ready(self) -> bool:
        return True

    def finished(self) -> bool:
        """Whether a worker wrote it before it died."""
        return self._path.exists() and self._path.stat().st_mtime >= self._started


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
