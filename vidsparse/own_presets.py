"""Presets from outside the package: of a Python file, and of entry points of other packages."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.own_code import SOURCE
from vidsparse.preset import Preset

GROUP = "vidsparse.presets"
_files: dict[Path, tuple[int, ModuleType]] = {}  # when each was changed, and what it is


def split_file(text: str) -> tuple[Path, str] | None:
    """The file and the name of ``FILE.py:NAME``; None for a text that names no Python file."""
    found = re.fullmatch(r"(.+\.py)(?::(.*))?", text, flags=re.DOTALL)
    return None if found is None else (Path(found[1]).expanduser().resolve(), found[2] or "")


def read_file(path: Path, name: str) -> Preset:
    """The preset that a Python file calls ``name``; runs the file, unless it was run as it is.

    Raises:
        BadInputError: When there is no such file, it fails, or has no preset of this name.
    """
    module = _run(path)
    held = [key for key, value in vars(module).items() if isinstance(value, Preset)]
    has = f"it has {', '.join(held)}" if held else "it makes no vidsparse.Preset"
    if not name:
        raise BadInputError(f"say which preset of {path}, as FILE.py:NAME: {has}")
    if not hasattr(module, name):
        raise BadInputError(f"{path} has no {name!r}: {has}")
    return _checked(getattr(module, name), f"{name} of {path}", has)


def sources() -> dict[str, bytes]:
    """The files that were read, with their text: another process may not have them."""
    return {str(path): getattr(module, SOURCE) for path, (_, module) in _files.items()}


def run_source(path: Path, text: bytes) -> ModuleType:
    """Run the text of a file as a module of its own, which its classes stay in.

    Raises:
        BadInputError: When it fails.
    """
    name = f"vidsparse_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    vars(module).update({"__file__": str(path), SOURCE: text})
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise BadInputError(f"{path} cannot be run: {_in_words(error, path)}") from error
    return module


def names_offered() -> tuple[str, ...]:
    """The presets that installed packages offer."""
    return tuple(dict.fromkeys(point.name for point in _points()))


def load_offered(name: str) -> tuple[Preset, str]:
    """A preset that an installed package offers, and where it comes from.

    Raises:
        BadInputError: When it cannot be loaded, or is none, or not of this name.
    """
    point = next(each for each in _points() if each.name == name)
    package = point.dist.name if point.dist is not None else point.module
    origin = f"the package {package}"
    try:
        found = point.load()
    except Exception as error:  # code of others raises anything
        raise BadInputError(
            f"{origin} offers the preset {name!r}, which cannot be loaded "
            f"({_in_words(error)}): mend or uninstall it"
        ) from error
    preset = _checked(found, f"{point.value} of {origin}", "an entry point names a preset")
    if preset.name != name:
        raise BadInputError(
            f"{origin} offers the preset {name!r}, which calls itself {preset.name!r}: its entry "
            "point has to have the preset's name"
        )
    return preset, origin


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _run(path: Path) -> ModuleType:
    try:
        changed = path.stat().st_mtime_ns
        text = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read presets from {path}: {error.strerror}") from error
    if path not in _files or _files[path][0] != changed:
        _files[path] = changed, run_source(path, text)
    return _files[path][1]


def _checked(found: Any, what: str, hint: str) -> Preset:
    if not isinstance(found, Preset):
        raise BadInputError(f"{what} is no vidsparse.Preset but {type(found).__name__}: {hint}")
    return found


def _in_words(error: Exception, path: Path | None = None) -> str:
    """An exception in one line, with the line of a file where it came up."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if step.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}"
