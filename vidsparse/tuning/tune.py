"""Tuning: the cheapest preset that meets a target on a few prompts, written to a preset file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from vidsparse.comparison import fingerprint
from vidsparse.comparison.finished import Finished
from vidsparse.comparison.reporter import Reporter
from vidsparse.comparison.spec import Spec
from vidsparse.comparison.store import Clips
from vidsparse.dial import LEAST, full_density, mean_density
from vidsparse.errors import BadInputError
from vidsparse.metrics.scores import Scorer
from vidsparse.preset import Preset
from vidsparse.presets import METHODS, find_preset
from vidsparse.progress import Progress
from vidsparse.tuning.curves import ErrorCurves, Errors, equally
from vidsparse.tuning.search import (
    SAVINGS,
    Base,
    Measure,
    Target,
    Trial,
    at,
    most_trials,
    refine,
    save,
    search,
)
from vidsparse.tuning.trials import LPIPS, Trials, board_of
from vidsparse.tuning.verdict import preset_file, verdict

BASES = ("balanced", "semantic")
SHARING = 6 + SAVINGS  # runs to share density among layers and heads, at most
TRIALS = ".trials"  # folder of what was run, beside the preset file


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning found.

    Attributes:
        preset: The best, as the file says it.
        path: The file.
        trial: What it did on the prompts.
        met: Whether it meets the target, and is faster than dense.
        sentence: The verdict.
        tried: Every trial, in order.
    """

    preset: Preset
    path: Path
    trial: Trial
    met: bool
    sentence: str
    tried: list[Trial]

    def __str__(self) -> str:
        """The verdict, and where the preset is."""
        return f"{self.sentence}\n{self.path}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "met": self.met,
            "sentence": self.sentence,
            "parameters": self.preset.plain_parameters(),
            "trials": [
                {
                    "preset": trial.preset.name,
                    "parameters": trial.preset.plain_parameters(),
                    "error": trial.error,
                    "seconds": trial.seconds,
                    "gain": trial.gain,
                    "mean_density": trial.density,
                }
                for trial in self.tried
            ],
        }


def read_target(psnr: float | None, lpips: float | None, seconds: float | None) -> Target:
    """The one target that is given.

    Raises:
        BadInputError: When there is none, or several, or one that is none.
    """
    given = {Measure.PSNR: psnr, Measure.LPIPS: lpips, Measure.SECONDS: seconds}
    found = {measure: value for measure, value in given.items() if value is not None}
    if len(found) != 1:
        raise BadInputError(
            "give one target: --target-psnr, --target-lpips or --target-seconds (target_psnr=, "
            "target_lpips= or target_seconds=)"
        )
    [(measure, value)] = found.items()
    if not 0 < value < 1e6:
        raise BadInputError(f"the target {measure.value} must be above 0, got {value:g}")
    return Target(measure, value)


def run_tuning(
    spec: Spec, target: Target, path: Path, *, command: str, reporter: Reporter, overwrite: bool
) -> Tuned:
    """Search, and write the best that was found.

    What the folder beside the file holds of an earlier run under the same settings is used again.

    Args:
        spec: The model, the prompts and seeds, and the presets to start from.
        target: What is wanted.
        path: Of the preset file.
        command: How it was asked for, for the file.
        reporter: Who is told of the work.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        BadInputError: For what cannot be tuned, before anything is made.
    """
    name = _name_of(path)
    _check(spec, target, path, overwrite=overwrite)
    bases = [_base(preset, spec) for preset in spec.presets]
    folder = path.with_suffix(TRIALS)
    clips = Clips(folder)
    with clips.locked():
        with reporter.loading(str(spec.job.checkpoint.source)):
            pipe = spec.job.load()
        finished = Finished(spec=spec, clips=clips, machine=fingerprint.of_machine(spec.job))
        scorer = Scorer(spec.weights, device=spec.job.device) if spec.weights else None
        most = most_trials(bases, len(CHANGES) + SHARING) + 1
        kinds = [base.preset.name for base in bases for _ in range(most * len(spec.cases))]
        with board_of(reporter, kinds[: most * len(spec.cases)]) as board:
            error = Measure.LPIPS if scorer is not None else Measure.PSNR
            trials = Trials(finished=finished, pipe=pipe, error=error, board=board, scorer=scorer)
            trials.dense()
            best = find(
                bases, target, trials, trials.cases[0].request.steps, spec.job.checkpoint.layers
            )
    file = preset_file(path, name, best, target, trials, command)
    file.write()
    preset = file.preset(find_preset(file.base))
    tried = [trial for each in trials.clips if (trial := trials(each)) is not None]
    met = target.met(best) and best.gain > 1
    return Tuned(
        preset=preset, path=path, trial=best, met=met, tried=tried,
        sentence=verdict(best, target, trials),
    )  # fmt: skip


class Runs(Protocol):
    """Runs presets on the prompts."""

    def __call__(self, preset: Preset, /) -> Trial | None:
        """A preset on the prompts; None where a run cannot have its mean density."""
        ...

    def errors(self, preset: Preset, /) -> Errors:
        """Mean relative error of each head of each layer, at full sparsity."""
        ...


def find(bases: list[Base], target: Target, trials: Runs, steps: int, layers: int | None) -> Trial:
    """The best: density first, then how steps, layers and heads share it.

    Args:
        bases: Where to start.
        target: What is wanted.
        trials: Makes every trial.
        steps: Of a run.
        layers: Of the model, None where nobody knows.

    Raises:
        BadInputError: When no run can be sparse.
    """
    best = search(bases, target, trials)
    if best is None:
        raise BadInputError(
            "no preset can have a mean density below dense in a run of so few steps: give --steps"
        )
    best = refine(best, CHANGES, target, trials)
    return _share(best, target, trials, steps, layers)


def _switch(name: str, value: float) -> Callable[[Preset], Preset | None]:
    """The same preset with another parameter; None where its others do not allow that."""

    def change(preset: Preset) -> Preset | None:
        try:
            return preset.override({name: value})
        except BadInputError:
            return None

    return change


def _one_more_dense_layer(preset: Preset) -> Preset:
    return preset.override({"dense_layers": preset.schedule.dense_layers + 1})


CHANGES = (
    _switch("ramp_until", 0.15),
    _switch("ramp_until", 0.5),
    _switch("cooldown", 0.05),
    _one_more_dense_layer,
)  # of a preset, at the same mean density


def _share(best: Trial, target: Target, trials: Runs, steps: int, layers: int | None) -> Trial:
    """Give layers, then heads, what their measured errors ask for, where whole runs err less so."""
    base, density = best.preset, best.preset.policy.mean_density
    if density is None or base.schedule.dense_layers or not layers or layers < 2:
        return best
    full = full_density(base, Progress.first(steps), layers=layers)
    both = full, min(0.9, 2 * full)
    if both[1] - full < 0.05:
        return best
    low, high = (trials.errors(base.override({"density": each})) for each in both)
    if len(low) != layers or len(high) != layers:
        return best
    of_layers = [[fmean(heads)] for heads in low], [[fmean(heads)] for heads in high]
    curves = ErrorCurves.through(both, of_layers)
    best = _shared(best, base, curves, "layers", target, trials, steps)
    if all(len(heads) == 1 for heads in low):
        return best
    try:
        low, high = (trials.errors(equally(base, each, low, "heads")) for each in both)
    except BadInputError:  # the preset has one density for all heads
        return best
    curves = ErrorCurves.through(both, (low, high))
    return _shared(best, base, curves, "heads", target, trials, steps)


def _shared(
    best: Trial, base: Preset, curves: ErrorCurves, path: str, target: Target, trials: Runs,
    steps: int,
) -> Trial:  # fmt: skip
    """The best, or a preset that shares as much density so, if it errs less."""

    def share(_: Preset, mean: float) -> Preset | None:
        found = at(base, mean)
        return None if found is None else curves.preset(found, steps, path)

    preset = share(base, best.preset.policy.mean_density or best.density)
    trial = None if preset is None else trials(preset)
    if trial is None or trial.error >= best.error:
        return best
    if target.is_time and target.met(best) and not target.met(trial):
        return best
    return save(trial, target, trials, share)


def _base(preset: Preset, spec: Spec) -> Base:
    """A preset to start from, and the least that a run of it can have.

    It is sparse whatever is known of the GPU: that is measured here.

    Raises:
        BadInputError: When its density cannot be turned, or it is of a Python file.
    """
    steps, layers = spec.cases[0].request.steps, spec.job.checkpoint.layers
    if preset.name not in {method.name for method in METHODS}:
        raise BadInputError(
            f"tune starts from presets of vidsparse, and {preset.name!r} is none: a preset file "
            "could not name it"
        )
    preset = preset.override({"min_tokens": preset.least_tokens})
    dial = preset.override({"mean_density": 0.5})
    least = mean_density(dial, Progress.first(steps), LEAST, layers=layers)
    return Base(preset, least)


def _check(spec: Spec, target: Target, path: Path, *, overwrite: bool) -> None:
    if path.suffix != ".toml":
        raise BadInputError(f"{path} must end in .toml: that is how a preset file is known")
    if path.exists() and not overwrite:
        raise BadInputError(f"{path} exists: give --overwrite to replace it, or another with -o")
    keys = [key for key in LPIPS if spec.weights and getattr(spec.weights, key)]
    if target.measure is Measure.LPIPS and not keys:
        raise BadInputError(
            "LPIPS needs a network: give --weights lpips_alex=PATH (vidsparse compare says where "
            "from), or --target-psnr"
        )
    tokens = spec.job.checkpoint.geometry.sequence(
        *(getattr(spec.cases[0].request, name) for name in ("frames", "height", "width"))
    ).tokens
    for preset in spec.presets:
        if why := preset.why_too_few(tokens):
            raise BadInputError(f"{why}: every step would run dense")


def _name_of(path: Path) -> str:
    """The name of the preset: its file's, or tuned where that is none or taken."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")
    taken = {method.name for method in METHODS} | {"dense", "sheet"}
    return f"{name}-tuned" if name in taken else name or "tuned"
