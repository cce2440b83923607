"""Calibrating: what a method chooses offline, found in dense runs, written to a preset file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsparse.calibrated import Calibrated
from vidsparse.calibrating.finders import Choices, Margins, Masks
from vidsparse.calibrating.watch import Finder, parts_of, watched
from vidsparse.comparison import fingerprint
from vidsparse.comparison.pace import Pace
from vidsparse.comparison.reporter import Board, Reporter
from vidsparse.comparison.spec import Case, Spec
from vidsparse.errors import BadInputError, DenseFallbackError
from vidsparse.files import replace_file
from vidsparse.of_model import Layers
from vidsparse.parameters import suggest
from vidsparse.pipelines.running.generate import denoise
from vidsparse.pipelines.session import Session
from vidsparse.policies.choosing import ChooseBy
from vidsparse.preset import Preset
from vidsparse.preset_files import PresetFile, changed_parameters
from vidsparse.presets import METHODS, find_preset
from vidsparse.progress import Progress
from vidsparse.stored_masks import StoredMasks, write_masks
from vidsparse.versions import versions

MASKS = ".safetensors"  # the file of masks, beside the preset file


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be found.

    Attributes:
        preset: Of vidsparse, with other parameters or without.
        table: The parameter that is found: choices or margins.
        error: Relative L1 of the output at most, where margins are found.
        masks: Whether the masks of all heads are made and kept too.
    """

    preset: Preset
    table: str
    error: float = 0.05
    masks: bool = False

    @classmethod
    def of(cls, preset: Preset, error: float | None, masks: bool | None) -> Asked:
        """What a preset asks for.

        Args:
            preset: Of vidsparse.
            error: None for the paper's.
            masks: None for as its paper does.

        Raises:
            BadInputError: When it finds nothing offline, or what is given does not go with it.
        """
        known = {method.name: found for method in METHODS if (found := table_of(method))}
        table = known.get(preset.name)
        if table is None:
            raise BadInputError(
                f"{preset.name} has nothing to calibrate: {suggest(preset.name, known)}"
            )
        if preset.of_model:
            raise BadInputError(f"{table} are what is found: leave {table} out")
        rule = preset.policy.alternatives
        has_masks = rule is not None and rule.choose_by is ChooseBy.BLOCKINESS
        if masks and not has_masks:
            raise BadInputError(f"{preset.name} keeps no masks: leave --masks (masks=) out")
        if error is not None and table != "margins":
            raise BadInputError(
                f"{preset.name} is calibrated to no error: leave --error (error=) out"
            )
        error = 0.05 if error is None else error
        if not 0 < error < 1:
            raise BadInputError(f"error must be in (0, 1), a relative L1, got {error:g}")
        return cls(
            preset=preset, table=table, error=error, masks=has_masks if masks is None else masks
        )

    def finder(self, preset: Preset) -> Choices | Margins:
        """What sees the dense runs.

        Args:
            preset: As it runs on the model.
        """
        return Choices(preset) if self.table == "choices" else Margins(preset, self.error)


def table_of(preset: Preset) -> str | None:
    """The parameter that calibrating a preset finds; None where there is nothing to find."""
    rule = preset.policy.alternatives
    if rule is not None:  # what decides by recall is asked for each video
        return None if rule.choose_by is ChooseBy.RECALL else "choices"
    return "margins" if preset.policy.estimator.observes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibrating found.

    Attributes:
        preset: As the file says it.
        path: The file.
        masks: The file of masks beside it, if any.
        shares: Of all heads of all layers and parts of the run, how many take what; margins by
            their value.
        sentence: The same, in words.
    """

    preset: Preset
    path: Path
    masks: Path | None
    shares: Mapping[str, float]
    sentence: str
    told: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What was found, and where it is."""
        return f"{self.sentence}\n{self.path}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": str(self.path),
            "masks": self.masks and str(self.masks),
            "sentence": self.sentence,
            "shares": dict(self.shares),
            "parameters": self.preset.plain_parameters(),
            **self.told,
        }


def run_calibration(
    spec: Spec, asked: Asked, path: Path, *, command: str, reporter: Reporter, overwrite: bool
) -> Calibration:
    """Watch dense runs, and write what was found.

    Args:
        spec: The model, the prompts and seeds; its one preset is as it runs on the model.
        asked: What is to be found.
        path: Of the preset file.
        command: How it was asked for, for the file.
        reporter: Who is told of the work.
        overwrite: Whether files that are there may be replaced.

    Raises:
        BadInputError: For what cannot be calibrated, before anything is made.
        DenseFallbackError: When the preset cannot be sparse on this model.
    """
    [preset] = spec.presets
    name, masks_path = _name_of(path), path.with_suffix(MASKS) if asked.masks else None
    _check(spec, preset, path, masks_path, overwrite=overwrite)
    machine = fingerprint.of_machine(spec.job)
    with reporter.loading(str(spec.job.checkpoint.source)):
        pipe = spec.job.load()
    cases = [*spec.cases, *(spec.cases[:1] if asked.masks else [])]
    labels = [f"prompt {case.prompt_index + 1}, seed {case.request.seed}" for case in cases]
    finder, stored = asked.finder(preset), None
    with reporter.board(len(cases), Pace(["watched"] * len(cases))) as board:
        for case, label in zip(spec.cases, labels, strict=False):
            layers = _watch(pipe, preset, case, finder, board, label)
        found = _calibrated(asked, path, finder, layers)
        if masks_path is not None:
            chosen = preset.override({asked.table: found})
            made = Masks(chosen)
            _watch(pipe, preset, spec.cases[0], made, board, f"masks, {labels[-1]}")
            stored = _store(made, masks_path, layers)
    told = _told(spec, machine, command) | {"found": _shares(found)}
    file = PresetFile(
        path=path,
        name=name,
        base=asked.preset.name,
        summary=f"{asked.preset.name}, calibrated on {_runs(len(spec.cases))}",
        parameters=_parameters(asked, stored),
        calibrated={asked.table: found},
        masks={} if stored is None else {"file": Path(stored.path).name, "sha256": stored.sha256},
        told=told,
    )
    file.write()
    return Calibration(
        preset=file.preset(find_preset(file.base)),
        path=path,
        masks=masks_path,
        shares=_shares(found),
        sentence=_sentence(found, stored),
        told={} if stored is None else {"mask_bytes": Path(stored.path).stat().st_size},
    )


@dataclass(slots=True)
class _Piece:
    """A run, as a reporter is told of it."""

    label: str
    kind: str = "watched"


def _watch(
    pipe: Any, preset: Preset, case: Case, finder: Finder, board: Board, label: str
) -> Layers:
    """Do one dense run under a finder's eyes; which layers there are."""
    seen = 0

    def count(*call: Any) -> None:
        nonlocal seen
        seen += 1
        finder(*call)

    finder.start_run()
    with board.piece(_Piece(label)), Session(pipe, watched(preset)) as session:
        session.observe(count)
        denoise(pipe, case.request, board.on_step)
        reasons, layers = ", ".join(session.stats.fallbacks), session.layers
    if not seen:
        raise DenseFallbackError(
            f"{preset.name} runs dense on this model, so there is nothing to find: {reasons}"
        )
    return tuple((name, number, heads) for name, (number, heads) in layers.items())


def _calibrated(asked: Asked, path: Path, finder: Choices | Margins, layers: Layers) -> Calibrated:
    parts = parts_of(finder.found(), [name for name, _, _ in layers])
    return Calibrated(str(path), layers, asked.preset.name, parts)


def _store(made: Masks, path: Path, layers: Layers) -> StoredMasks:
    ends, bits = made.parts()
    assert made.grid is not None
    return write_masks(
        path, bits, layers=layers, grid=made.grid, block=made.block, density=made.density, ends=ends
    )


def _parameters(asked: Asked, stored: StoredMasks | None) -> dict[str, Any]:
    """What the file changes in its base; masks take the place of an estimator and a density."""
    changes = changed_parameters(asked.preset, find_preset(asked.preset.name))
    if stored is None:
        return changes
    kept = {name: each for name, each in changes.items() if name not in ("density", "mean_density")}
    return {**kept, "estimator": "stored", "selector": "threshold", "block": stored.block}


def _told(spec: Spec, machine: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Of what the file was made, and by what."""
    job, request = spec.job, spec.cases[0].request
    video = {key: getattr(request, key) for key in ("frames", "height", "width", "steps")}
    grid = job.checkpoint.geometry.sequence(request.frames, request.height, request.width)
    return {
        "made_for": {
            "model": str(job.checkpoint.release or job.checkpoint.source),
            "pipeline": job.checkpoint.pipeline,
            **video,
            "guidance": request.guidance,
            "grid": str(grid),
            "dtype": job.dtype,
            "machine": str(machine["machine"]),
            "prompts": [each.prompt for each in job.requests],
            "seeds": list(spec.seeds),
        },
        "made_by": {"command": command, **{k: v for k, v in versions().items() if v}},
    }


def _runs(number: int) -> str:
    return "one dense run" if number == 1 else f"{number} dense runs"


def _shares(found: Calibrated) -> dict[str, float]:
    """Of all values, weighed by the share of the run that they are of, how many are which."""
    weights: dict[str, float] = {}
    begin = 0.0
    for until, layers in found.parts:
        for _, values in layers:
            for value in values:
                name = value if isinstance(value, str) else f"{value:g}"
                weights[name] = weights.get(name, 0.0) + (until - begin) / len(values)
        begin = until
    total = sum(weights.values())
    return {name: weight / total for name, weight in sorted(weights.items(), key=_heaviest)}


def _heaviest(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def _sentence(found: Calibrated, stored: StoredMasks | None) -> str:
    kind = "" if isinstance(found.parts[0][1][0][1][0], str) else "margin "
    shares = ", ".join(f"{kind}{name} {share:.0%}" for name, share in _shares(found).items())
    parts = "the whole run" if len(found.parts) == 1 else f"{len(found.parts)} parts of the run"
    said = f"{found.method}: {shares}, in {parts}"
    if stored is None:
        return said
    size = Path(stored.path).stat().st_size / 1e6
    return f"{said}; masks of mean density {stored.density:.3f} in {stored.path} ({size:,.1f} MB)"


def _check(spec: Spec, preset: Preset, path: Path, masks: Path | None, *, overwrite: bool) -> None:
    if path.suffix != ".toml":
        raise BadInputError(f"{path} must end in .toml: that is how a preset file is known")
    for each in (path, masks):
        if each is not None and each.exists() and not overwrite:
            raise BadInputError(
                f"{each} exists: give --overwrite to replace it, or another with -o"
            )
    request = spec.cases[0].request
    size = request.frames, request.height, request.width
    tokens = spec.job.checkpoint.geometry.sequence(*size).tokens
    if tokens < preset.min_tokens:
        raise BadInputError(
            f"{tokens:,} tokens are too few to gain (min_tokens is {preset.min_tokens:,}): "
            "every step would run dense, and nothing of the file be used"
        )
    layers = spec.job.checkpoint.layers
    is_dense = layers is not None and preset.schedule.dense_layers >= layers
    if is_dense or not any(preset.schedule.ways(Progress.first(request.steps))):
        raise BadInputError(
            f"every step of {request.steps} is dense in {preset.name}: give --steps, or a shorter "
            "warm-up"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.with_suffix(".probe")  # a folder that cannot be written to is known now
    replace_file(probe, lambda part: part.write_bytes(b""))
    probe.unlink()


def _name_of(path: Path) -> str:
    """The name of the preset: its file's, or calibrated where that is none or taken."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")
    taken = {method.name for method in METHODS} | {"dense", "sheet"}
    return f"{name}-calibrated" if name in taken else name or "calibrated"
