"""What a comparison has finished: what its folder holds that was made under the same settings."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vidsparse.comparison import fingerprint
from vidsparse.comparison.spec import DENSE, Case, Spec
from vidsparse.comparison.store import Clips
from vidsparse.metrics.report.results import Grid, NoiseFloor, Run
from vidsparse.preset import Preset

FLOOR = "dense-other-engine"
ENGINES = "dense-engines"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What of a comparison is there.

    Attributes:
        spec: What was asked for.
        clips: Where finished work is kept.
        machine: What all runs share, as ``fingerprint.of_machine`` has it.
    """

    spec: Spec
    clips: Clips
    machine: dict[str, Any]

    def run(self, case: Case, preset: Preset | None) -> Run | None:
        """A generation that is finished, dense without a preset."""
        name = preset.name if preset else DENSE
        record = self.clips.record(case, name, self.settings(case, preset))
        return None if record is None else Run.model_validate(record)

    def again(self, case: Case, preset: Preset | None, number: int) -> Run | None:
        """The same generation, timed once more, if that is finished; ``number`` from 2."""
        name = f"{preset.name if preset else DENSE}.again{number}"
        record = self.clips.record(case, name, self.settings(case, preset))
        return None if record is None else Run.model_validate(record)

    def runs(self, case: Case, preset: Preset | None) -> list[Run]:
        """Every time that a generation was timed, in order."""
        again = [self.again(case, preset, number) for number in range(2, self.spec.repeats + 1)]
        return [run for run in (self.run(case, preset), *again) if run is not None]

    def scores(self, case: Case, preset: Preset) -> dict[str, Any] | None:
        """What was measured on the frames of a preset, as ``ClipScores`` has it."""
        runs = self.run(case, preset), self.run(case, None)
        if None in runs:
            return None
        settings = self.score_settings(case, *runs)
        return self.clips.record(case, f"{preset.name}.scores", settings)

    def floor(self) -> NoiseFloor | None:
        """Dense against dense by another engine, if that is wanted and finished."""
        first = self.spec.cases[0]
        if not self.spec.wants_floor:
            return None
        record = self.clips.record(first, FLOOR, self.settings(first, None))
        return None if record is None else NoiseFloor.model_validate(record)

    def dense_engines(self) -> dict[str, float]:
        """Milliseconds of a dense attention call by engine; ``diffusers`` is stock."""
        settings = self.settings(self.spec.cases[0], None)
        record = self.clips.record(self.spec.cases[0], ENGINES, settings)
        return record["milliseconds"] if record else {}

    def attention_error(self, case: Case, preset: Preset) -> Grid:
        """Relative L1 of attention outputs, ``[layer][step]``; empty where not measured."""
        settings = self.settings(case, preset)
        record = self.clips.record(case, f"{preset.name}.errors", settings)
        return record["attention_error"] if record and self.spec.wants_errors else []

    def settings(self, case: Case, preset: Preset | None) -> dict[str, Any]:
        """The settings that a generation is made under."""
        strict = bool(preset) and self.spec.job.strict
        return fingerprint.of_run(self._machine, case.request, preset) | {"strict": strict}

    def score_settings(self, case: Case, *runs: Run | None) -> dict[str, Any]:
        """The settings that frames are scored under."""
        frames = [run.frames_sha256 for run in runs if run is not None]
        return {**self._scoring, "frames": frames, "asked": self.spec.asked(case)}

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of the generations that are finished, by kind."""
        known: defaultdict[str, list[float]] = defaultdict(list)
        for case in self.spec.cases:
            for preset in (None, *self.spec.presets):
                if run := self.run(case, preset):
                    known[preset.name if preset else DENSE].append(run.stages.total)
        return known

    @cached_property
    def _machine(self) -> dict[str, Any]:
        record_format = {"record format": list(Run.model_fields)}
        return self.machine | record_format

    @cached_property
    def _scoring(self) -> dict[str, Any]:
        return fingerprint.of_scoring(self.spec.weights, self.spec.job.fps, self.spec.judge)


def kept(run: Run) -> dict[str, Any]:
    """What is written of a generation: all of it but what follows from the rest."""
    return run.model_dump(exclude={"stages": {"other"}})
