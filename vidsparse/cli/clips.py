"""The clips that a comparison has finished: kept in its folder, so that a rerun repeats none.

    clips/<prompt>-<digest>-s<seed>/dense.npy     raw frames
                                    dense.json    what was measured, and under what settings
                                    PRESET.npy, PRESET.json, PRESET.scores.json, ...

A record is written after its frames and removed before they are replaced: a record that is there
belongs to the frames beside it, whenever the process was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidsparse.errors import BadInputError
from vidsparse.files import replace_file, save_array

if TYPE_CHECKING:
    from vidsparse.pipelines.generate import Request

Settings = Mapping[str, Any]
FOLDER = "clips"
DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt with one seed.

    Attributes:
        prompt_index: Which prompt, from 0.
        request: What to generate.
    """

    prompt_index: int
    request: Request

    @property
    def key(self) -> str:
        """Name of its folder: the same wherever the prompt stands in a file of prompts."""
        prompt = self.request.prompt
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")
        short = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        return f"{words}-{short}-s{self.request.seed}".lstrip("-")


class Clips:
    """Finished work under ``folder/clips``.

    Attributes:
        changed: Names of settings for which finished work could not be used.

    Args:
        folder: Of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.changed: dict[str, None] = {}
        self._folder = folder

    def path(self, case: Case, name: str) -> Path:
        """Where a file of a case lies, such as ``dense.npy``."""
        return self._folder / FOLDER / case.key / name

    def relative(self, case: Case, name: str) -> str:
        """The same, seen from the folder of the comparison, with forward slashes."""
        return self.path(case, name).relative_to(self._folder).as_posix()

    def record(self, case: Case, name: str, settings: Settings) -> dict[str, Any] | None:
        """What was kept under a name, if made under these settings; else notes what changed."""
        try:
            found = json.loads(self.path(case, f"{name}.json").read_text(encoding="utf-8"))
            before = found.pop("settings")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        now = _plain(settings)
        if before != now:
            self.changed |= {key: None for key in now if before.get(key) != now[key]}
            return None
        return found

    def array(self, case: Case, name: str) -> np.ndarray:
        """The array kept under a name, read from disk as it is needed.

        Raises:
            FileNotFoundError: When there is none.
            ValueError: When the file is not whole.
        """
        return np.load(self.path(case, f"{name}.npy"), mmap_mode="r")

    def has_arrays(self, case: Case, *names: str) -> bool:
        """Whether all these arrays are there and whole."""
        try:
            return all(self.array(case, name) is not None for name in names)
        except (OSError, ValueError):
            return False

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
        for file, array in arrays.items():
            replace_file(self.path(case, f"{file}.npy"), lambda part, x=array: save_array(part, x))
        text = json.dumps({"settings": _plain(settings), **record}, ensure_ascii=False)
        replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))

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


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))


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
                "another folder with -o"
            ) from None
        yield
    finally:
        os.close(handle)
