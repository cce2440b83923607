"""The settings that decide whether a finished piece of work can be used again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.comparison.machine import cpu_model
from vidsparse.preset import Preset
from vidsparse.versions import versions

if TYPE_CHECKING:
    from vidsparse.comparison.job import Job
    from vidsparse.metrics.weights import Weights
    from vidsparse.pipelines.running.generate import Request

PACKAGE = Path(__file__).resolve().parent.parent
NOT_OF_PIXELS = (
    "calibrating",
    "cli",
    "comparison",
    "bench",
    "metrics",
    "tuning",
)  # rooms that only call, measure or show


def of_machine(job: Job) -> dict[str, Any]:
    """What all runs of a job share: the model, where and with what it runs, and our own code.

    Times of two machines do not compare, so the device counts, and on a CPU its threads.
    """
    if job.device.startswith("cuda"):
        machine = torch.cuda.get_device_name(job.device)
    else:
        machine = f"{cpu_model()}, {torch.get_num_threads()} threads"
    return {
        "model": str(job.checkpoint.source),
        "weights": job.model.weights(),
        "device": job.device,
        "machine": machine,
        "dtype": job.dtype,
        "stack": repr(job.model.stack),
        **versions(),
        "code": code(pixel_files()),
    }


def of_run(machine: Mapping[str, Any], request: Request, preset: Preset | None) -> dict[str, Any]:
    """The settings of one generation; how a preset is described does not count."""
    nameless = preset and replace(preset, summary="", source="")
    inputs = [(file.role, file.sha256) for file in request.inputs]
    return {**machine, **asdict(request), "inputs": inputs, "preset": repr(nameless)}


def of_scoring(weights: Weights | None, fps: float, judge: Path | None = None) -> dict[str, Any]:
    """What all scores share: our code of the metrics, frames per second, weights of networks."""
    paths = [value for value in asdict(weights).values() if value] if weights else []
    paths += [judge] if judge else []
    files = [path for each in paths for path in _files_of(Path(each))]
    return {
        "code": code(score_files()),
        "torch": torch.__version__,
        "fps": fps,
        "weights": of_files(files),
    }


def _files_of(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]


def of_files(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of files."""
    stats = {str(path): path.stat() for path in paths}
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())


def pixel_files() -> list[Path]:
    """Every file of ours that can change a frame: what lies in no room that only looks on."""
    rooms = (each for each in PACKAGE.iterdir() if each.is_dir() and each.name not in NOT_OF_PIXELS)
    return [*_own_files(PACKAGE.iterdir()), *(f for room in rooms for f in _own_files_under(room))]


def score_files() -> list[Path]:
    """Every file of ours that can change a score."""
    found = _own_files_under(PACKAGE / "metrics")
    return [path for path in found if "report" not in path.relative_to(PACKAGE).parts]


def code(paths: Iterable[Path]) -> str:
    """Condense source files and tables of the package, wherever it is installed."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()[:32]


def _own_files_under(room: Path) -> list[Path]:
    """Those in a room and its folders; a room may be a link, which ``rglob`` begins at."""
    return _own_files(room.rglob("*"))


def _own_files(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix in (".py", ".json") and path.is_file()]
