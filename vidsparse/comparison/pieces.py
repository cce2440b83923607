"""The work of a comparison, piece by piece: what is finished is not done again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.comparison import measure
from vidsparse.comparison.finished import ENGINES, FLOOR, Finished, kept
from vidsparse.comparison.pace import Pace
from vidsparse.comparison.reporter import Board, Reporter
from vidsparse.comparison.spec import DENSE, Case
from vidsparse.metrics.report.results import NoiseFloor
from vidsparse.preset import Preset

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.comparison.workers import Pool
    from vidsparse.metrics.scores import Scorer

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Something to do.

    Attributes:
        kind: Pieces of one kind take about as long as each other.
        label: For a person.
        finished: Whether it was done before.
        do: Does it, and tells of its steps.
        ready: Whether what it needs is there.
        needs_pipe: Whether the model has to be loaded for it.
    """

    kind: str
    label: str
    finished: Callable[[], bool]
    do: Callable[[OnStep], None]
    ready: Callable[[], bool] = lambda: True
    needs_pipe: bool = True


class CompareWork:
    """Makes everything that a comparison needs.

    Args:
        finished: What was asked for, and what of it is there.
        reporter: Who is told of it.
    """

    def __init__(self, finished: Finished, reporter: Reporter) -> None:
        self._done, self._spec = finished, finished.spec
        self._reporter = reporter
        self._scorer: Scorer | None = None
        self._pipe: Any = None
        self._warm: set[str] = set()

    def do(self, pool: Pool | None = None) -> None:
        """Do what is not done yet, here or on a cluster, with one bar over all of it."""
        pieces = self.pieces()
        to_do = [piece for piece in pieces if not piece.finished()]
        note = self._reporter.note
        if len(to_do) < len(pieces):
            note(f"{len(pieces) - len(to_do)} of {len(pieces)} pieces of work were done before")
        if self._done.clips.changed:
            note(f"made again, since these changed: {', '.join(self._done.clips.changed)}")
        if self._done.clips.damaged:
            note(f"made again, since changed on disk: {', '.join(self._done.clips.damaged)}")
        pace = Pace([p.kind for p in to_do], self._done.seconds(), pool.size if pool else 1)
        if pool is None and any(piece.needs_pipe for piece in to_do):
            self._load()  # before the clock of the first piece runs
        with self._reporter.board(len(to_do), pace) as board:
            if pool is not None:
                pool.do(self, pieces, partial(_report, board, pieces))
                return
            for piece in to_do:
                with board.piece(piece):
                    self._do(piece, board.on_step)

    def do_piece(self, number: int) -> None:
        """Do one of ``pieces()``, if it is not done yet."""
        piece = self.pieces()[number]
        if not piece.finished():
            self._do(piece, lambda done, total: None)

    def _do(self, piece: Piece, on_step: OnStep) -> None:
        if piece.needs_pipe:
            self._load()
        piece.do(on_step)

    def _load(self) -> None:
        if self._pipe is None:
            self._scorer = None  # makes room on the device
            with self._reporter.loading(str(self._spec.job.checkpoint.source)):
                self._pipe = self._spec.job.load()

    def pieces(self) -> list[Piece]:
        """All generations, then what is measured on their frames."""
        first = self._spec.cases[0]
        has_dense = partial(self._has_run, first, None)
        found = [
            self._generation(case, preset)
            for case in self._spec.cases
            for preset in (None, *self._spec.presets)
        ]
        found += [
            self._again(case, preset, number)
            for number in range(2, self._spec.repeats + 1)
            for case in self._spec.cases
            for preset in (None, *self._spec.presets)
        ]
        if self._spec.wants_floor:
            found.append(
                Piece(
                    kind=DENSE,
                    label=f"dense by another engine, {_label(first)}",
                    finished=lambda: self._done.floor() is not None,
                    do=partial(self._do_floor, first),
                    ready=has_dense,
                )
            )
        found.append(
            Piece(
                kind="dense engines",
                label="dense attention by every engine",
                finished=lambda: bool(self._done.dense_engines()),
                do=self._do_dense_engines,
                ready=has_dense,
                needs_pipe=False,
            )
        )
        if self._spec.wants_errors:
            found += [self._errors(first, preset) for preset in self._spec.presets]
        return [
            *found,
            *(self._score(case, p) for case in self._spec.cases for p in self._spec.presets),
        ]

    def _generation(self, case: Case, preset: Preset | None) -> Piece:
        name = preset.name if preset else DENSE
        return Piece(
            kind=name,
            label=f"{name}, {_label(case)}",
            finished=lambda: self._done.run(case, preset) is not None,
            do=partial(self._do_generation, case, preset),
            ready=partial(self._has_run, case, None) if preset else lambda: True,
        )

    def _again(self, case: Case, preset: Preset | None, number: int) -> Piece:
        name = preset.name if preset else DENSE
        return Piece(
            kind=name,
            label=f"{name} again, {number} of {self._spec.repeats}, {_label(case)}",
            finished=lambda: self._done.again(case, preset, number) is not None,
            do=partial(self._do_again, case, preset, number),
        )

    def _errors(self, case: Case, preset: Preset) -> Piece:
        return Piece(
            kind=preset.name,
            label=f"{preset.name}, attention errors, {_label(case)}",
            finished=lambda: bool(self._done.attention_error(case, preset)),
            do=partial(self._do_errors, case, preset),
        )

    def _score(self, case: Case, preset: Preset) -> Piece:
        return Piece(
            kind="scores",
            label=f"scores of {preset.name}, {_label(case)}",
            finished=lambda: self._done.scores(case, preset) is not None,
            do=partial(self._do_score, case, preset),
            ready=lambda: self._has_run(case, None) and self._has_run(case, preset),
            needs_pipe=False,
        )

    def _has_run(self, case: Case, preset: Preset | None) -> bool:
        return self._done.run(case, preset) is not None

    def _do_generation(self, case: Case, preset: Preset | None, on_step: OnStep) -> None:
        name = preset.name if preset else DENSE
        reference = self._done.clips.array(case, f"{DENSE}.latents") if preset else None
        made = self._measure(case, preset, on_step, reference)
        arrays = {name: made.frames}
        if preset is None:
            arrays[f"{DENSE}.latents"] = made.latents
        self._done.clips.save(case, name, self._done.settings(case, preset), kept(made.run), arrays)

    def _do_again(self, case: Case, preset: Preset | None, number: int, on_step: OnStep) -> None:
        made = self._measure(case, preset, on_step, None)
        name = f"{preset.name if preset else DENSE}.again{number}"
        settings = self._done.settings(case, preset)
        self._done.clips.save(case, name, settings, kept(made.run), {})

    def _measure(
        self, case: Case, preset: Preset | None, on_step: OnStep, reference: np.ndarray | None
    ) -> measure.Measured:
        """Generate and measure, warmed up."""
        name = preset.name if preset else DENSE
        if name not in self._warm:
            measure.warm_up(self._pipe, case.request, preset)
            self._warm.add(name)
        job = self._spec.job
        return measure.measure(
            self._pipe,
            case.request,
            preset,
            on_step,
            strict=job.strict,
            reference=reference,
            compiled=job.model.stack.compile,
        )

    def _do_floor(self, case: Case, on_step: OnStep) -> None:
        from vidsparse.metrics.fidelity import fidelity

        how, frames = measure.dense_by_another_engine(self._pipe, case.request, on_step)
        found = fidelity(frames, self._done.clips.array(case, DENSE))
        identical = found.identical_frames == len(frames)
        floor = NoiseFloor(psnr=found.to_json()["psnr"], identical=identical, how=how)
        settings = self._done.settings(case, None)
        self._done.clips.save(case, FLOOR, settings, floor.model_dump(), {FLOOR: frames})

    def _do_dense_engines(self, on_step: OnStep) -> None:
        from vidsparse.comparison.baselines import time_dense_engines

        first, dense = self._spec.cases[0], self._done.run(self._spec.cases[0], None)
        assert dense is not None
        dtype = getattr(torch, self._spec.job.dtype)
        try:
            times = time_dense_engines(dense.attention_shape, dtype, self._spec.job.device)
        except torch.OutOfMemoryError:  # beside the model; the clips are made and want a report
            times = {}
        self._done.clips.save(
            first, ENGINES, self._done.settings(first, None), {"milliseconds": times}, {}
        )

    def _do_errors(self, case: Case, preset: Preset, on_step: OnStep) -> None:
        table = measure.attention_error(self._pipe, case.request, preset, on_step)
        settings = self._done.settings(case, preset)
        self._done.clips.save(
            case, f"{preset.name}.errors", settings, {"attention_error": table}, {}
        )

    def _do_score(self, case: Case, preset: Preset, on_step: OnStep) -> None:
        if self._done.scores(case, preset) is not None:  # the same frames were made again
            return
        frames, reference = (self._done.clips.array(case, name) for name in (preset.name, DENSE))
        found = self._make_scorer().score(frames, reference, asked=self._spec.asked(case))
        settings = self._done.score_settings(
            case, self._done.run(case, preset), self._done.run(case, None)
        )
        self._done.clips.save(case, f"{preset.name}.scores", settings, asdict(found), {})

    def _make_scorer(self) -> Scorer:
        """Scores clips, with networks on the device once the model is off it."""
        from vidsparse.metrics.scores import Scorer

        if self._scorer is None:
            self._pipe = None
            gc.collect()  # hooks of a cache or of offload refer to what they hang on
            self._scorer = Scorer(
                self._spec.weights,
                fps=self._spec.job.fps,
                device=self._spec.job.device,
                judge=self._spec.judge,
            )
        return self._scorer


def _report(board: Board, pieces: list[Piece], number: int, outcome: Any, seconds: float) -> None:
    """A worker ended a piece; its failure ends the comparison, as it would here."""
    if isinstance(outcome, Exception):
        raise outcome
    board.finish(pieces[number], seconds)


def _label(case: Case) -> str:
    prompt = case.request.prompt
    short = prompt if len(prompt) <= 40 else f"{prompt[:39].rstrip()}…"
    return f"{short}, seed {case.request.seed}"
