"""Records of finished work beside its files: a hash of each file, and one of the record itself.

What was changed since, by hand or by a failing disk, is so known before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidsparse.files import replace_file


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    text = json.dumps({"sha256": _hash(content), **content}, ensure_ascii=False)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None where it is not there, or not as ``write_record`` left it."""
    try:
        if not path.is_file():  # a pipe would never end
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found.pop("sha256") == _hash(found) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
