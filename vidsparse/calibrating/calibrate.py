"""Calibrating: what a method chooses offline, found in dense runs, written to a preset file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from vidsparse.calibrated import Calibrated
from vidsparse.calibrating.asked import Asked
from vidsparse.calibrating.finders import Choices, Margins, Masks
from vidsparse.calibrating.report import runs, sentence, shares, told
from vidsparse.calibrating.watch import Finder, parts_of, watched
from vidsparse.comparison import fingerprint
from vidsparse.comparison.pace import Pace
from vidsparse.comparison.reporter import Board, Reporter
from vidsparse.comparison.spec import Case, Spec
from vidsparse.errors import BadInputError, CannotWriteError, DenseFallbackError
from vidsparse.of_model import Layers
from vidsparse.pipelines.running.generate import denoise
from vidsparse.pipelines.session import Session
from vidsparse.preset import Preset
from vidsparse.preset_files import PresetFile, changed_parameters
from vidsparse.presets import METHODS, find_preset
from vidsparse.progress import Progress
from vidsparse.stored_masks import StoredMasks, write_masks

MASKS = ".safetensors"  # the file of masks, beside the preset file


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
        mask_bytes: Size of that file.
    """

    preset: Preset
    path: Path
    masks: Path | None
    shares: Mapping[str, float]
    sentence: str
    mask_bytes: int = 0

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
            "mask_bytes": self.mask_bytes,
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
        CannotWriteError: When the system refuses; it is asked before anything is made.
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
    layers: Layers = ()
    with reporter.board(len(cases), Pace(["watched"] * len(cases))) as board:
        for case, label in zip(spec.cases, labels, strict=False):
            layers = _watch(pipe, preset, case, finder, board, label)
        found = _calibrated(asked, path, finder, layers)
        if masks_path is not None:
            chosen = preset.override({asked.table: found})
            made = Masks(chosen)
            _watch(pipe, preset, spec.cases[0], made, board, f"masks, {labels[-1]}")
            stored = _store(made, masks_path, layers)
    file = PresetFile(
        path=path,
        name=name,
        base=asked.preset.name,
        summary=f"{asked.preset.name}, calibrated on {runs(len(spec.cases))}",
        parameters=_parameters(asked, stored),
        calibrated={asked.table: found},
        masks={} if stored is None else {"file": Path(stored.path).name, "sha256": stored.sha256},
        told=told(spec, machine, command) | {"found": shares(found)},
    )
    file.write()
    return Calibration(
        preset=file.preset(find_preset(file.base)),
        path=path,
        masks=masks_path,
        shares=shares(found),
        sentence=sentence(found, stored),
        mask_bytes=0 if stored is None else Path(stored.path).stat().st_size,
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
    if why := preset.why_too_few(tokens):
        raise BadInputError(f"{why}: every step would run dense, and nothing of the file be used")
    layers = spec.job.checkpoint.layers
    is_dense = layers is not None and preset.schedule.dense_layers >= layers
    if is_dense or not any(preset.schedule.ways(Progress.first(request.steps))):
        raise BadInputError(
            f"every step of {request.steps} is dense in {preset.name}: give --steps, or a shorter "
            "warm-up"
        )
    try:  # a folder that cannot be written to is known now
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path} ({error.strerror or error}): choose another folder with -o"
        ) from error


def _name_of(path: Path) -> str:
    """The name of the preset: its file's, or calibrated where that is none or taken."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")
    taken = {method.name for method in METHODS} | {"dense", "sheet"}
    return f"{name}-calibrated" if name in taken else name or "calibrated"
