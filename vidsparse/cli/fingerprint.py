"""The settings that decide whether a finished piece of work can be used again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.cli.doctor import versions
from vidsparse.cli.machine import cpu_model
from vidsparse.preset import Preset

if TYPE_CHECKING:
    from vidsparse.cli.job import Job
    from vidsparse.metrics.weights import Weights
    from vidsparse.pipelines.running.generate import Request

PACKAGE = Path(__file__).resolve().parent.parent
KERNELS = ("kernels", "kernels/engines", "kernels/planning", "kernels/triton")
# Folders of our code.
MAKES_PIXELS = ("", "policies", *KERNELS, "pipelines", "pipelines/running")
MAKES_SCORES = ("metrics",)


def of_machine(job: Job) -> dict[str, Any]:
    """What all runs of a job share: the model, where and with what it runs, and our own code.

    Times of two machines do not compare, so the device counts, and on a CPU its threads.
    """
    source = job.checkpoint.source
    if job.device.startswith("cuda"):
        machine = torch.cuda.get_device_name(job.device)
    else:
        machine = f"{cpu_model()}, {torch.get_num_threads()} threads"
    return {
        "model": str(source),
        "weights": of_files(source.rglob("*.safetensors")) if isinstance(source, Path) else None,
        "device": job.device,
        "machine": machine,
        "dtype": job.dtype,
        **versions(),
        "code": code(MAKES_PIXELS),
    }


def of_run(machine: Mapping[str, Any], request: Request, preset: Preset | None) -> dict[str, Any]:
    """The settings of one generation; how a preset is described does not count."""
    nameless = preset and replace(preset, summary="", source="")
    return {**machine, **asdict(request), "preset": repr(nameless)}


def of_scoring(weights: Weights | None, fps: float, judge: Path | None = None) -> dict[str, Any]:
    """What all scores share: our code of the metrics, frames per second, weights of networks."""
    paths = [value for value in asdict(weights).values() if value] if weights else []
    paths += [judge] if judge else []
    files = [path for each in paths for path in _files_of(Path(each))]
    return {
        "code": code(MAKES_SCORES),
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


def code(folders: tuple[str, ...]) -> str:
    """Condense our own source files and tables in some folders of the package."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted((PACKAGE / folder).iterdir()):
            if path.suffix in (".py", ".json"):
                total.update(f"{folder}/{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:32]
