"""Which videos of ``generate --prompts`` are there: each has a record of how it was made beside it.

    000.mp4         the video
    000.mp4.json    what ``--json`` says of it, the settings it was made under, and its hash

The record is written first without a hash, which makes the file that follows ours, then with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.comparison import fingerprint
from vidsparse.comparison.records import hash_file, plain, read_record, write_record
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.comparison.job import Job
    from vidsparse.preset import Preset

UNFINISHED = "was not finished"


class FinishedVideos:
    """What is there of the videos of a job.

    Args:
        job: What to make.
        preset: What to make sparse; None for dense.
        paths: A file for each request.
        machine: What all runs share, as ``fingerprint.of_machine`` has it.
    """

    def __init__(
        self, job: Job, preset: Preset | None, paths: list[Path], machine: Mapping[str, Any]
    ) -> None:
        self._job, self._preset, self._paths, self._machine = job, preset, paths, machine

    def facts(self, number: int) -> dict[str, Any] | None:
        """What was said of a video that is finished, made just as it is wanted now; else None."""
        return None if self._differs(number) else self._record(number)["facts"]

    def check_free(self) -> None:
        """Make sure that no file is lost that is something else.

        Raises:
            BadInputError: Where one is there, with what it is.
        """
        taken = [
            (path, why)
            for number, path in enumerate(self._paths)
            if path.exists() and (why := self._differs(number)) and why != UNFINISHED
        ]
        if not taken:
            return
        path, why = taken[0]
        more = f", as do {len(taken) - 1} more" if len(taken) > 1 else ""
        raise BadInputError(
            f"{path} exists and {why}{more}: give --overwrite to replace what is in the way, or "
            "another folder with -o"
        )

    def write(self, number: int, frames: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Write a video and its record."""
        path, settings = self._paths[number], self._settings(number)
        record = {"settings": settings, "hash": None, "facts": dict(facts)}
        write_record(_beside(path), record)
        self._job.write(path, frames, self._job.requests[number], self._preset)
        write_record(_beside(path), record | {"hash": hash_file(path)})

    def _differs(self, number: int) -> str | None:
        """Why a file is not what is wanted; None if it is."""
        path, record = self._paths[number], self._record(number)
        if not record:
            return "has no record of vidsparse beside it"
        now = self._settings(number)
        changed = [key for key in now if record["settings"].get(key) != now[key]]
        if changed:
            return f"was made with other settings ({', '.join(changed)})"
        if record["hash"] is None or not path.exists():
            return UNFINISHED
        if not path.is_file() or hash_file(path) != record["hash"]:
            return "was changed since it was made"
        return None

    def _record(self, number: int) -> dict[str, Any]:
        return read_record(_beside(self._paths[number])) or {}

    def _settings(self, number: int) -> dict[str, Any]:
        job = self._job
        run = fingerprint.of_run(self._machine, job.requests[number], self._preset)
        del run["machine"]  # times do not count here
        return plain(run | {"strict": job.strict, "fps": job.fps})


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
