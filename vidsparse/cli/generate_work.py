"""The work of ``generate``: a video for each prompt, here or on a cluster."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import vidsparse
from vidsparse.cli.progress import Screen
from vidsparse.cli.screen import answer, complain, note, step_bar
from vidsparse.comparison.job import given_beside

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.cli.finished_videos import FinishedVideos
    from vidsparse.comparison.job import Job
    from vidsparse.comparison.workers import Pool
    from vidsparse.pipelines.running.generate import Request
    from vidsparse.preset import Preset
    from vidsparse.stats import Stats


class Made(NamedTuple):
    """A video that was made.

    Attributes:
        line: What is said of it to a person.
        facts: And to a program.
    """

    line: str
    facts: dict[str, Any]


class GenerateWork:
    """Makes a video for each request, whatever becomes of the others.

    Attributes:
        made: What is said to a program of each video that is there, by number.
        failed: Of each that is not, likewise.

    Args:
        job: What to make.
        preset: What to make sparse; None for dense.
        paths: A file for each request.
        finished: What is there already, of many; None for a single video.
        quiet: Whether to say nothing to a person.
    """

    def __init__(
        self,
        job: Job,
        preset: Preset | None,
        paths: list[Path],
        finished: FinishedVideos | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.made: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, dict[str, Any]] = {}
        self._job, self._preset, self._paths = job, preset, paths
        self._finished, self._quiet = finished, quiet
        self._pipe: Any = None

    def do_alone(self) -> None:
        """Make the only video; what goes wrong is raised."""
        self._report(0, self.do_piece(0), 0.0)

    def do(self, pool: Pool | None = None) -> None:
        """Make all that are not there yet, here or on a cluster."""
        found = {number: self.facts_of(number) for number in range(len(self._paths))}
        self.made = {number: facts for number, facts in found.items() if facts is not None}
        if self.made:
            note(f"{len(self.made)} of {len(self._paths)} videos were made before")
        if pool is not None:
            pool.do(self, [Video(self, number) for number in found], self._report)
            return
        to_do = [number for number in found if number not in self.made]
        if to_do:
            self._load()  # what fails here fails for all
        for number in to_do:
            try:
                outcome: Any = self.do_piece(number)
            except Exception as error:
                outcome = error
            self._report(number, outcome, 0.0)

    def do_piece(self, number: int) -> Made:
        """Make one video and write it."""
        self._load()
        path, request = self._paths[number], self._job.requests[number]
        preset, many = self._preset, len(self._paths) > 1
        label = path.stem if many else preset.name if preset else "dense"
        strict, stack = self._job.strict, self._job.model.stack
        result = run_request(self._pipe, request, preset, label, strict=strict)
        facts = self._facts(number, result)
        if self._finished is None:
            self._job.write(path, result.frames, request, preset)
        else:
            self._finished.write(number, result.frames, facts)
        return Made(final_line(path, result, stack.describe()), facts)

    def facts_of(self, number: int) -> dict[str, Any] | None:
        """What is said of a video that is finished; None if it is not."""
        facts = self._finished.facts(number) if self._finished else None
        return facts and facts | {"path": str(self._paths[number])}

    def label(self, number: int) -> str:
        """One video, for a person."""
        return f"{self._paths[number].name} ({self._job.requests[number].prompt!r})"

    def to_json(self) -> dict[str, Any]:
        """What became of all of them, in the order of the prompts."""
        return {
            "videos": [self.made[number] for number in sorted(self.made)],
            "failed": [self.failed[number] for number in sorted(self.failed)],
        }

    def _load(self) -> None:
        if self._pipe is None:
            with Screen().loading(str(self._job.checkpoint.source)):
                self._pipe = self._job.load()

    def _report(self, number: int, outcome: Any, seconds: float) -> None:
        path = self._paths[number]
        if isinstance(outcome, Exception):
            prompt = self._job.requests[number].prompt
            complain(f"{path.name} failed ({prompt!r}): {outcome}")
            self.failed[number] = {"path": str(path), "prompt": prompt, "error": str(outcome)}
            return
        if outcome is None:  # the worker died after it had finished
            outcome = Made(f"[bold]{path}[/bold]", self.facts_of(number) or {"path": str(path)})
        self.made[number] = outcome.facts
        if not self._quiet:
            answer(outcome.line)

    def _facts(self, number: int, result: Result) -> dict[str, Any]:
        request, stats = self._job.requests[number], result.stats
        return {
            "path": str(self._paths[number]),
            "prompt": request.prompt,
            "seed": request.seed,
            "model": str(self._job.checkpoint.source),
            "preset": self._preset and self._preset.name,
            "steps": request.steps,
            "seconds": result.seconds,
            "mean_density": stats.mean_density if stats else 1.0,
            "dense_steps_share": stats.dense_steps_share if stats else 1.0,
            "engines": dict(stats.engines) if stats else {},
            "fallbacks": dict(stats.fallbacks) if stats else {},
            "notes": list(stats.notes) if stats else [],
            "stack": self._job.model.stack.describe(),
            **given_beside(request),
        }


class Video:
    """One video as a piece of work on a cluster.

    Attributes:
        label: For a person.

    Args:
        work: That it is part of.
        number: Which.
    """

    def __init__(self, work: GenerateWork, number: int) -> None:
        self.label = work.label(number)
        self._work, self._number = work, number

    def ready(self) -> bool:
        return True

    def finished(self) -> bool:
        """Whether it is there, written by whom ever."""
        return self._work.facts_of(self._number) is not None


def final_line(path: Path, result: Result, stack: list[str]) -> str:
    """Say where the video is, how long it took, how sparse it was and what fell back."""
    start = ", ".join([f"[bold]{path}[/bold] in {result.seconds:.1f} s", *stack])
    if result.stats is None:
        return f"{start}, dense"
    stats = result.stats
    lines = [
        f"{start}, mean density {stats.mean_density:.3f}, {stats.dense_steps_share:.0%} of the "
        f"steps dense, {stats.describe_fallbacks()}",
        *stats.notes,
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Result:
    """One video or image.

    Attributes:
        frames: uint8 ``(frames, height, width, 3)``.
        seconds: From prompt to frames, on the clock of this process.
        stats: What the session did; None for a dense run.
    """

    frames: np.ndarray
    seconds: float
    stats: Stats | None


def run_request(
    pipe: Any, request: Request, preset: Preset | None, label: str, *, strict: bool = False
) -> Result:
    """Generate one video with progress, dense without a preset; leaves the pipeline clean."""
    from vidsparse.pipelines.running.generate import generate

    attached = vidsparse.sparsify(pipe, preset, strict=strict) if preset else nullcontext()
    with attached as session:
        stats = session.stats if session else None
        with step_bar(label, request.steps, stats) as on_step:
            started = perf_counter()
            frames = generate(pipe, request, on_step)
            return Result(frames, perf_counter() - started, stats)
