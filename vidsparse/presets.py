"""Presets by name: the methods of the table, those of other packages, and the user's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vidsparse.errors import BadInputError
from vidsparse.methods import METHODS
from vidsparse.own_presets import load_offered, names_offered, read_file, split_file
from vidsparse.parameters import suggest
from vidsparse.preset import Preset
from vidsparse.preset_files import PresetFile

ALIASES: Mapping[str, str] = {"temporal": "lite"}
CALL = "a call of vidsparse.register"
RESERVED = ("dense", "dense-other-engine", "dense-engines", "sheet")  # a comparison's own files
_presets = {preset.name: preset for preset in METHODS}
assert len(_presets) == len(METHODS)
_origins: dict[str, str] = {}  # of presets that are not in the table
PRESETS: Mapping[str, Preset] = MappingProxyType(_presets)
"""The methods of the table, and what was registered since."""


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Args:
        name: In ``PRESETS``, or of an entry point of the group ``vidsparse.presets`` of an
            installed package, or ``FILE.py:NAME`` for the preset ``NAME`` of a Python file, which
            is then run, or ``FILE.toml`` for a preset file such as ``vidsparse tune`` writes.

    Raises:
        BadInputError: When there is none, with the near matches; or the file or the package does
            not make one, or one whose name is taken.
    """
    if found := split_file(name):
        path, variable = found
        preset = read_file(path, variable)
        _put(preset, f"{path}:{variable}")
        return preset
    if name.endswith(".toml"):
        file = PresetFile.read(Path(name).expanduser().resolve())
        preset = file.preset(find_preset(file.base))
        _put(preset, str(file.path))
        return preset
    name = ALIASES.get(name, name)
    if name not in PRESETS and name in names_offered():
        _put(*load_offered(name))
    if name not in PRESETS:
        known = dict.fromkeys([*PRESETS, *names_offered()])
        raise BadInputError(f"unknown preset {name!r}: {suggest(name, known)}")
    return PRESETS[name]


def under_base(preset: Preset) -> Preset:
    """A preset of a calibration file under the name of its base, of which it is one.

    What a preset file says of it is then its parameters, the calibration file among them.
    """
    if not preset.of_model or not preset.source.endswith(".toml"):
        return preset
    base = find_preset(PresetFile.read(Path(preset.source)).base)
    return dataclasses.replace(preset, name=base.name, summary=base.summary, source=base.source)


def register(preset: Preset, *, replace: bool = False) -> Preset:
    """Give a preset of your own its name: from then on it is found like those of the table.

    Args:
        preset: Its ``name`` is made of letters, digits, ``-`` and ``_``.
        replace: Put it in the place of one that was registered under this name before; the methods
            of the table stay as they are.

    Returns:
        The same preset.

    Raises:
        BadInputError: When it is no preset, or its name is taken, or cannot be one.
    """
    if not isinstance(preset, Preset):
        raise BadInputError(f"register takes a vidsparse.Preset, got {preset!r}")
    _put(preset, CALL, replace=replace)
    return preset


def register_offered() -> list[str]:
    """Load the presets of all installed packages.

    Returns:
        What went wrong, a sentence each.
    """
    problems = []
    for name in names_offered():
        try:
            _put(*load_offered(name))
        except BadInputError as error:
            problems.append(str(error))
    return problems


def _put(preset: Preset, origin: str, *, replace: bool = False) -> None:
    """Keep a preset under its name; what a file or a package offers may come from there again."""
    name, before = preset.name, _origins.get(preset.name)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, flags=re.ASCII):
        raise BadInputError(
            f"a preset cannot be named {name!r}, as that of {origin} is: take letters, digits, - "
            "and _, such as my-method"
        )
    if name in RESERVED or name in ALIASES or (name in PRESETS and before is None):
        raise BadInputError(
            f"the preset of {origin} is named {name!r}, as one of vidsparse itself is: give it "
            "another name"
        )
    is_same = before == origin != CALL or PRESETS.get(name) == preset
    if before is not None and not (is_same or replace):
        raise BadInputError(
            f"the preset of {origin} is named {name!r}, as one of {before} is: give it another "
            "name, or put it in that one's place with vidsparse.register(preset, replace=True)"
        )
    _presets[name], _origins[name] = preset, origin
