"""What a comparison has finished: what its folder holds that was made under the same settings."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.cli import fingerprint
from vidsparse.cli.clips import DENSE, Case, Clips
from vidsparse.cli.job import Job
from vidsparse.cli.measured_run import Run, Table
from vidsparse.preset import Preset

if TYPE_CHECKING:
    from vidsparse.metrics.weights import Weights

FLOOR = "dense-other-engine"
ENGINES = "dense-engines"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was asked for, and what of it is there.

    Attributes:
        job: Where and with what model.
        presets: To compare with dense.
        cases: Every prompt with every seed.
        clips: Where finished work is kept.
        weights: Of learned metrics.
        wants_floor: Whether to compare dense with dense by another engine.
        wants_errors: Whether to measure the error of attention calls.
        repeats: How often each generation is timed.
        machine: What all runs share, as ``fingerprint.of_machine`` has it.
    """

    job: Job
    presets: list[Preset]
    cases: list[Case]
    clips: Clips
    machine: dict[str, Any]
    weights: Weights | None = None
    wants_floor: bool = False
    wants_errors: bool = False
    repeats: int = 1

    def run(self, case: Case, preset: Preset | None) -> Run | None:
        """A generation that is finished, dense without a preset."""
        name = preset.name if preset else DENSE
        record = self.clips.record(case, name, self.settings(case, preset))
        return None if record is None else Run.of_json(record)

    def again(self, case: Case, preset: Preset | None, number: int) -> Run | None:
        """The same generation, timed once more, if that is finished; ``number`` from 2."""
        name = f"{preset.name if preset else DENSE}.again{number}"
        record = self.clips.record(case, name, self.settings(case, preset))
        return None if record is None else Run.of_json(record)

    def runs(self, case: Case, preset: Preset | None) -> list[Run]:
        """Every time that a generation was timed, in order."""
        again = [self.again(case, preset, number) for number in range(2, self.repeats + 1)]
        return [run for run in (self.run(case, preset), *again) if run is not None]

    def scores(self, case: Case, preset: Preset) -> dict[str, Any] | None:
        """What was measured on the frames of a preset, as ``ClipScores`` has it."""
        runs = self.run(case, preset), self.run(case, None)
        if None in runs:
            return None
        settings = self.score_settings(case, *runs)
        return self.clips.record(case, f"{preset.name}.scores", settings)

    def floor(self) -> dict[str, Any] | None:
        """``psnr``, ``identical`` and ``how`` of dense against dense."""
        if not self.wants_floor:
            return None
        return self.clips.record(self.cases[0], FLOOR, self.settings(self.cases[0], None))

    def dense_engines(self) -> dict[str, float]:
        """Milliseconds of a dense attention call by engine; ``diffusers`` is stock."""
        settings = self.settings(self.cases[0], None)
        record = self.clips.record(self.cases[0], ENGINES, settings)
        return record["milliseconds"] if record else {}

    def attention_error(self, case: Case, preset: Preset) -> Table:
        """Relative L1 of attention outputs, ``[layer][step]``; empty where not measured."""
        settings = self.settings(case, preset)
        record = self.clips.record(case, f"{preset.name}.errors", settings)
        return record["attention_error"] if record and self.wants_errors else []

    def settings(self, case: Case, preset: Preset | None) -> dict[str, Any]:
        """Under which a generation is made."""
        strict = bool(preset) and self.job.options.strict
        return fingerprint.of_run(self._machine, case.request, preset) | {"strict": strict}

    def score_settings(self, case: Case, *runs: Run | None) -> dict[str, Any]:
        """Under which frames are scored."""
        frames = [run.frames_sha256 for run in runs if run is not None]
        return {**self._scoring, "frames": frames, "asked": self.asked(case)}

    @cached_property
    def judge(self) -> Path | None:
        """Who can say what a clip shows; nobody but for the pipeline that ships."""
        from vidsparse.pipelines.running.checkpoints import TINY

        return TINY / "judge.safetensors" if self.job.checkpoint.source == TINY else None

    def asked(self, case: Case) -> dict[str, str] | None:
        """What the judge is to look for; None where it cannot judge."""
        from vidsparse.pipelines.running.prompts import read_parts

        return read_parts(case.request.prompt) if self.judge else None

    def not_judged(self) -> str | None:
        """Why clips are not judged; None where all are."""
        if self.judge is None:
            return "the judge knows only the clips of the pipeline that ships"
        foreign = [case.request.prompt for case in self.cases if self.asked(case) is None]
        if not foreign:
            return None
        return (
            f"{foreign[0]!r} is not in the language of the pipeline that ships, which its README "
            "shows"
        )

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of the generations that are finished, by kind."""
        known: defaultdict[str, list[float]] = defaultdict(list)
        for case in self.cases:
            for preset in (None, *self.presets):
                if run := self.run(case, preset):
                    known[preset.name if preset else DENSE].append(run.stages.total)
        return known

    @cached_property
    def _machine(self) -> dict[str, Any]:
        record_format = {"record format": [each.name for each in fields(Run)]}
        return self.machine | record_format

    @cached_property
    def _scoring(self) -> dict[str, Any]:
        return fingerprint.of_scoring(self.weights, self.job.fps, self.judge)
