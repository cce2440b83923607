"""The record of ``vidsparse bench pipeline``: rows, what follows from them, and going on later."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from vidsparse.bench import kernel_bench
from vidsparse.bench.dense_engine import BEST_DENSE
from vidsparse.bench.pipeline_bench import REST, STOCK, Settings
from vidsparse.comparison import fingerprint
from vidsparse.comparison.baselines import LABELS
from vidsparse.comparison.records import plain
from vidsparse.errors import BadInputError
from vidsparse.forecast import forecast
from vidsparse.gpus import GPUS
from vidsparse.kernels.dense import MODEL
from vidsparse.metrics.report.words import STOCK as DIFFUSERS
from vidsparse.preset import Preset
from vidsparse.run_time import predict
from vidsparse.step_time import by_engine, dense_step

WHAT = (
    "whole denoising runs with random weights, each after a short one; seconds are of the run "
    "without text encoder and VAE"
)
ENGINES = {DIFFUSERS: MODEL} | {label: engine for engine, label in LABELS.items()}
FORMULA = "whole_seconds = rest + (seconds - rest) * of / layers: every block is like the others"
OF_CACHED = (
    "with a cache the same of each step by itself: a call that is skipped runs as many blocks in "
    "the whole model as here"
)


class Record:
    """Everything that was measured under the same settings.

    Attributes:
        rows: What was measured, in order.

    Args:
        settings: What is measured.
        command: How it was asked for.
        path: Where it is kept; None keeps it nowhere.
        overwrite: Whether a file of other settings may be replaced.

    Raises:
        BadInputError: When the file holds something else.
    """

    def __init__(
        self, settings: Settings, command: str, path: Path | None, *, overwrite: bool = False
    ) -> None:
        self._settings, self._command, self._path = settings, command, path
        self._facts = plain(_facts(settings))
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists() and not overwrite:
            self.rows = _rows_of(path, self._facts)
            for preset in settings.presets:
                _check_parameters(path, preset, self.rows)

    @property
    def done(self) -> set[str]:
        """Names of the rows that are there."""
        return {row["name"] for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write the file anew."""
        self.rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kernel_bench.write(self._path, self.content())

    def content(self) -> dict[str, Any]:
        """The whole record, with what follows from its rows."""
        made = kernel_bench.record(self.told(), self._command, WHAT)
        rows = made.pop("rows")
        run, of = self._settings.blocks
        cached = f"; {OF_CACHED}" if self._settings.cache is not None else ""
        formula = {"formula": FORMULA + cached} if run < of else {}
        return {**made, "settings": self._facts, **formula, "rows": rows}

    def told(self) -> list[dict[str, Any]]:
        """The rows with the time of the whole model, and how many times as fast each is."""
        known = {row["name"]: self._whole(row) for row in self.rows}
        found = []
        for row in self.rows:
            whole = known[row["name"]]
            more: dict[str, Any] = {"whole_seconds": whole}
            for name, key in ((STOCK, "over_stock"), (BEST_DENSE, "over_best_dense")):
                base = known.get(name)
                if base and whole and row["name"] != REST:
                    more[key] = base / whole
            predicted = self._predicted(row)
            found.append(row | more | ({"predicted_seconds": predicted} if predicted else {}))
        return found

    def _whole(self, row: dict[str, Any]) -> float | None:
        """Seconds of a run of all blocks; None where the rest was not measured yet."""
        run, of = self._settings.blocks
        if run == of:
            return row["seconds"]
        rest = next((each for each in self.rows if each["name"] == REST), None)
        if rest is None:
            return None
        if "ran_per_step" in row:
            return _whole_of_cached(row, rest, run, of)
        return rest["seconds"] + (row["seconds"] - rest["seconds"]) * of / run

    def _predicted(self, row: dict[str, Any]) -> float | None:
        """What ``vidsparse plan`` says of the run of all blocks; None where it cannot."""
        device, settings = _device(self._settings), self._settings
        here = next((name for name, gpu in GPUS.items() if gpu.label == device), None)
        preset = next((each for each in settings.presets if each.name == row["name"]), None)
        if here is None:
            return None
        checkpoint, how = settings.checkpoint, {key: row[key] for key in ("compiled", "quantized")}
        calls = checkpoint.calls(settings.steps)
        try:
            if row["name"] in (STOCK, BEST_DENSE):
                step = dense_step(settings.shapes, GPUS[here], **how)
                engine = ENGINES.get(row.get("engine", DIFFUSERS), "")
                known = by_engine(step, engine, settings.shapes.head_dim, GPUS[here])
                return known and calls * known.seconds
            if preset is None:
                return None
            found = forecast(preset, settings.grid, calls, checkpoint.layers, checkpoint.head_dim)
            return predict(found, settings.shapes, here, **how).sparse
        except BadInputError:  # depends on the data, or nothing was measured of such layers
            return None


def _whole_of_cached(row: dict[str, Any], rest: dict[str, Any], run: int, of: int) -> float:
    """Seconds of a run of all blocks: each step by itself, as ``OF_CACHED`` says."""
    whole = row["seconds"]
    pairs = zip(row["ran_per_step"], row["step_seconds"], rest["step_seconds"], strict=True)
    for ran, seconds, without in pairs:
        here = sum(ran)
        there = sum(of if each == run else each for each in ran)
        whole += (seconds - without) * (there / here - 1) if here else 0.0
    return whole


def _check_parameters(path: Path, preset: Preset, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row.get("preset") == preset.name and row["parameters"] != plain(
            preset.plain_parameters()
        ):
            raise BadInputError(
                f"{path} has {preset.name} with other parameters: give --overwrite to replace it, "
                "or another with -o"
            )


def _facts(settings: Settings) -> dict[str, Any]:
    """What has to be the same for rows to stand beside each other."""
    run, of = settings.blocks
    video = dataclasses.asdict(settings.video)
    return {
        "model": str(settings.checkpoint.source),
        "pipeline": settings.checkpoint.pipeline,
        **video,
        "steps": settings.steps,
        "grid": str(settings.grid),
        "tokens": settings.grid.tokens,
        "layers": run,
        "of": of,
        "samples": settings.shapes.samples,
        "dtype": settings.dtype,
        "compiled": settings.compiled,
        "quantized": settings.quantize,
        "machine": _device(settings),
        "torch": torch.__version__,
        "code": fingerprint.code(fingerprint.pixel_files()),
    }


def _device(settings: Settings) -> str:
    if settings.device.startswith("cuda"):
        return torch.cuda.get_device_name(settings.device)
    return f"{fingerprint.cpu_model()}, {torch.get_num_threads()} threads"


def _rows_of(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record of the same settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, rows = dict(found["settings"]), list(found["rows"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInputError(
            f"{path} exists and is no record of this: give --overwrite to replace it, or another "
            "with -o"
        ) from error
    if changed := [name for name, value in facts.items() if before.get(name) != value]:
        raise BadInputError(
            f"{path} was measured with another {changed[0]} ({before.get(changed[0])}, now "
            f"{facts[changed[0]]}): give --overwrite to replace it, or another with -o"
        )
    later = ("whole_seconds", "over_stock", "over_best_dense", "predicted_seconds")
    return [{key: value for key, value in row.items() if key not in later} for row in rows]
