"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vidsparse.errors import CannotWriteError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file of a temporary name, then give it its own, even on Ctrl-C.

    The temporary file lies in the same folder and has the same suffix, in lower case.

    Raises:
        CannotWriteError: When the system refuses, with the path, the cause and a way out.
    """
    part = path.with_name(f".vidsparse-{secrets.token_hex(4)}{path.suffix.lower()}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        way_out = "free some space" if error.errno in NO_ROOM else "check the folder"
        raise CannotWriteError(
            f"cannot write {path} ({error.strerror or error}): {way_out} or choose another folder"
        ) from error
    finally:  # after the move there is nothing left to remove
        with contextlib.suppress(OSError):
            part.unlink()


def save_array(path: Path, array: np.ndarray) -> None:
    """Write ``.npy`` so that an error names its cause: numpy's own file writing loses it.

    Raises:
        OSError: When the system refuses.
    """
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)  # type: ignore[arg-type]
