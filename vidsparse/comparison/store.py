"""The clips that a comparison has finished: kept in its folder, so that a rerun repeats none.

    clips/<prompt>-<digest>-s<seed>/dense.npy     raw frames
                                    dense.json    what was measured, and under what settings
                                    PRESET.npy, PRESET.json, PRESET.scores.json, ...

A record is written after its frames and removed before they are replaced: a record that is there
belongs to the frames beside it, whenever the process was killed. It holds a hash of those files
and one of itself, so that nothing is used that was changed since.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidsparse.comparison.records import hash_file, plain, read_record, write_record
from vidsparse.comparison.spec import Case
from vidsparse.errors import BadInputError
from vidsparse.files import replace_file, save_array

Settings = Mapping[str, Any]
FOLDER = "clips"
SHEET = "sheet.png"


class Clips:
    """Finished work under ``folder/clips``.

    Attributes:
        changed: Names of settings for which finished work could not be used.
        damaged: Files that are not as they were written, and so were not used.

    Args:
        folder: Of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.changed: dict[str, None] = {}
        self.damaged: dict[str, None] = {}
        self._folder = folder
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def path(self, case: Case, name: str) -> Path:
        """Where a file of a case lies, such as ``dense.npy``."""
        return self._folder / FOLDER / case.key / name

    def relative(self, case: Case, name: str) -> str:
        """The same, seen from the folder of the comparison, with forward slashes."""
        return self.path(case, name).relative_to(self._folder).as_posix()

    def record(self, case: Case, name: str, settings: Settings) -> dict[str, Any] | None:
        """What was kept under a name, if it and its arrays are as they were written.

        None where it is not there, was made under other settings (noted in ``changed``), or was
        changed since (noted in ``damaged``).
        """
        path = self.path(case, f"{name}.json")
        if not os.path.lexists(path):
            return None
        found = read_record(path)
        if found is None:
            self.damaged[self.relative(case, f"{name}.json")] = None
            return None
        before, now = found.pop("settings"), plain(settings)
        if before != now:
            self.changed |= {key: None for key in now if before.get(key) != now[key]}
            return None
        hashes = found.pop("files")
        damaged = [file for file in hashes if self._hash(case, file) != hashes[file]]
        self.damaged |= {self.relative(case, file): None for file in damaged}
        return None if damaged else found

    def _hash(self, case: Case, file: str) -> str | None:
        """Hash a file, once for each state of it; None for what is no file or cannot be read."""
        path = self.path(case, file)
        try:
            stat = path.stat()
            if not path.is_file():
                return None
            state = path, stat.st_mtime_ns, stat.st_size
            if state not in self._hashes:
                self._hashes[state] = hash_file(path)
        except OSError:
            return None
        return self._hashes[state]

    def array(self, case: Case, name: str) -> np.ndarray:
        """The array kept under a name, read from disk as it is needed.

        Raises:
            FileNotFoundError: When there is none.
            ValueError: When the file is not whole.
        """
        return np.load(self.path(case, f"{name}.npy"), mmap_mode="r")

    def save(
        self,
        case: Case,
        name: str,
        settings: Settings,
        record: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Keep arrays, by the name of their file, and then the record that vouches for them."""
        path = self.path(case, f"{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        hashes: dict[str, str] = {}
        for file, array in arrays.items():

            def write(part: Path, file: str = file, array: np.ndarray = array) -> None:
                save_array(part, array)
                hashes[f"{file}.npy"] = hash_file(part)

            replace_file(self.path(case, f"{file}.npy"), write)
        write_record(path, {"settings": plain(settings), "files": hashes, **record})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and remove what one that was killed left unfinished.

        Raises:
            BadInputError: When another process is writing here.
        """
        root = self._folder / FOLDER
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            for part in (*root.glob("*/.vidsparse-*"), *self._folder.glob(".vidsparse-*")):
                part.unlink(missing_ok=True)
            yield


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(
                f"another vidsparse compare is writing to {folder.parent}: wait for it, or choose "
                "another folder with -o (out=)"
            ) from None
        yield
    finally:
        os.close(handle)
