"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file of a temporary name, then give it its own, even on Ctrl-C.

    The temporary file lies in the same folder and has the same suffix, in lower case.
    """
    part = path.with_name(f".vidsparse-{secrets.token_hex(4)}{path.suffix.lower()}")
    try:
        write(part)
        part.replace(path)
    finally:  # after the move there is nothing left to remove
        with contextlib.suppress(OSError):
            part.unlink()
