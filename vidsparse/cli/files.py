"""Files that are either whole or not there."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file of a temporary name, then give it its own, even on Ctrl-C."""
    part = path.with_name(f".vidsparse-{secrets.token_hex(4)}{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
