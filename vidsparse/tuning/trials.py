"""Trials: presets run on the prompts, held against dense, and kept so that none is run twice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from vidsparse.comparison import measure
from vidsparse.comparison.attention_error import ErrorMeter
from vidsparse.comparison.finished import Finished, kept
from vidsparse.comparison.pace import Pace
from vidsparse.comparison.reporter import Board, Reporter
from vidsparse.comparison.spec import DENSE, Case
from vidsparse.dial import full_density
from vidsparse.errors import DenseFallbackError, OutOfReachError
from vidsparse.metrics.clips import finite_mean
from vidsparse.metrics.psnr import decibels, squared_error
from vidsparse.metrics.scores import Scorer
from vidsparse.pipelines.running.generate import generate
from vidsparse.pipelines.session import Session
from vidsparse.preset import Preset
from vidsparse.progress import Progress
from vidsparse.tuning.curves import Errors
from vidsparse.tuning.search import Measure, Trial

LPIPS = ("lpips_alex", "lpips_vgg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What a preset made of one case, against dense.

    Attributes:
        psnr: In dB, as a comparison says it; None where every pixel is the same.
        lpips: None where it is not measured.
        seconds: Of the run, sparse.
        dense_seconds: Of the run, dense.
        density: Mean density.
    """

    psnr: float | None
    lpips: float | None
    seconds: float
    dense_seconds: float
    density: float


@dataclass(slots=True)
class _Piece:
    """A run, as a reporter is told of it."""

    kind: str
    label: str


@dataclass(kw_only=True)
class Trials:
    """Runs presets on every case.

    Attributes:
        finished: What is to be run, and what of it is there.
        pipe: The pipeline.
        error: What presets are judged by.
        scorer: Measures LPIPS; None for PSNR alone.
        board: Told of every run.
        clips: What each preset made, in the order of trials.
    """

    finished: Finished
    pipe: Any
    error: Measure
    board: Board
    scorer: Scorer | None = None
    clips: dict[Preset, list[Clip]] = field(default_factory=dict)
    _warm: set[str] = field(default_factory=set)

    @property
    def cases(self) -> list[Case]:
        """Every prompt with every seed."""
        return self.finished.spec.cases

    def __call__(self, preset: Preset) -> Trial | None:
        """Run a preset on every case; None where a run cannot have its mean density."""
        if not self._can_run(preset):
            return None
        if preset not in self.clips:
            try:
                self.clips[preset] = [self._clip(case, preset) for case in self.cases]
            except OutOfReachError:  # with what its plans keep besides, which the run alone knows
                return None
        found = self.clips[preset]
        errors = [-clip.psnr if clip.psnr is not None else -math.inf for clip in found]
        if self.error is Measure.LPIPS:
            errors = [clip.lpips or 0.0 for clip in found]
        return Trial(
            preset=preset,
            error=fmean(errors),
            seconds=fmean(clip.seconds for clip in found),
            gain=fmean(clip.dense_seconds / clip.seconds for clip in found),
            density=fmean(clip.density for clip in found),
        )

    def dense(self) -> None:
        """Make what all presets are held against."""
        for case in self.cases:
            if self.finished.run(case, None) is None:
                made = self._measure(case, None, f"{DENSE}, {_short(case)}")
                arrays = {DENSE: made.frames, f"{DENSE}.latents": made.latents}
                settings = self.finished.settings(case, None)
                self.finished.clips.save(case, DENSE, settings, kept(made.run), arrays)

    def errors(self, preset: Preset) -> Errors:
        """Mean relative error of each head of each layer at full sparsity, on the first case."""
        case, meter = self.cases[0], ErrorMeter()
        piece = self._piece(preset, f"errors of heads, {_short(case)}")
        with piece, Session(self.pipe, preset) as session:
            session.observe(meter)
            generate(self.pipe, case.request, self.board.on_step)
        return errors_of_heads(meter, preset.schedule.ways(Progress.first(case.request.steps)))

    def _can_run(self, preset: Preset) -> bool:
        if preset.policy.mean_density is None:
            return True
        layers = self.finished.spec.job.checkpoint.layers
        try:
            for steps in {case.request.steps for case in self.cases}:
                full_density(preset, Progress.first(steps), layers=layers)
        except OutOfReachError:
            return False
        return True

    def _clip(self, case: Case, preset: Preset) -> Clip:
        name = f"{preset.name}-{hashlib.sha256(repr(preset).encode()).hexdigest()[:12]}"
        settings = self.finished.settings(case, preset) | {
            "lpips": self.scorer is not None,
            "against": self._dense_frames(case),
        }
        record = self.finished.clips.record(case, name, settings)
        if record is None:
            record = asdict(self._make_clip(case, preset))
            self.finished.clips.save(case, name, settings, record, {})
        return Clip(**record)

    def _make_clip(self, case: Case, preset: Preset) -> Clip:
        made = self._measure(case, preset, f"{_about(preset)}, {_short(case)}")
        if made.run.fallbacks and made.run.mean_density >= 1:
            reasons = ", ".join(made.run.fallbacks)
            raise DenseFallbackError(f"{preset.name} runs dense on this model: {reasons}")
        dense = self.finished.clips.array(case, DENSE)
        psnr = finite_mean(decibels(squared_error(made.frames, np.asarray(dense)))).item()
        before = self.finished.run(case, None)
        assert before is not None
        return Clip(
            psnr=psnr if math.isfinite(psnr) else None,
            lpips=self._lpips(made.frames, np.asarray(dense)),
            seconds=made.run.stages.total,
            dense_seconds=before.stages.total,
            density=made.run.mean_density,
        )

    def _lpips(self, frames: np.ndarray, dense: np.ndarray) -> float | None:
        if self.scorer is None:
            return None
        values = self.scorer.score(frames, dense).values
        return next((values[name] for name in LPIPS if name in values), None)

    def _dense_frames(self, case: Case) -> str:
        run = self.finished.run(case, None)
        assert run is not None
        return run.frames_sha256

    def _measure(self, case: Case, preset: Preset | None, label: str) -> measure.Measured:
        """Generate, warmed up."""
        name = preset.name if preset else DENSE
        if name not in self._warm:
            measure.warm_up(self.pipe, case.request, preset)
            self._warm.add(name)
        with self._piece(preset, label):
            strict = self.finished.spec.job.strict
            return measure.measure(
                self.pipe, case.request, preset, self.board.on_step, strict=strict
            )

    @contextmanager
    def _piece(self, preset: Preset | None, label: str) -> Iterator[None]:
        with self.board.piece(_Piece(preset.name if preset else DENSE, label)):
            yield


@contextmanager
def board_of(reporter: Reporter, kinds: list[str]) -> Iterator[Board]:
    """One bar over at most so many runs, with the time left if it is all of them."""
    with reporter.board(len(kinds), Pace(kinds)) as board:
        yield board


def _about(preset: Preset) -> str:
    density = preset.policy.mean_density or preset.policy.density
    return preset.name if density is None else f"{preset.name} at {density:.3f}"


def _short(case: Case) -> str:
    return f"prompt {case.prompt_index + 1}, seed {case.request.seed}"


def errors_of_heads(meter: ErrorMeter, ways: list[float]) -> Errors:
    """Mean relative L1 of each head of each layer over the calls at full sparsity.

    Args:
        meter: Of a run.
        ways: How far each step has come to full sparsity.
    """
    found: dict[int, list[list[float]]] = {}
    for key, error in meter.errors.items():
        if ways[key.step] >= 1:
            found.setdefault(key.layer, []).append(error.relative_l1.mean(dim=0).tolist())
    layers = range(1 + max(key.layer for key in meter.errors))
    return [[fmean(each) for each in zip(*found.get(at, [[0.0]]), strict=True)] for at in layers]
