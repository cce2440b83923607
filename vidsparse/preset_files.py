"""Preset files: TOML that names a preset and what is changed in it, and says what to expect.

    name = "tuned"
    base = "balanced"
    summary = "balanced, tuned for 28 dB"

    [parameters]
    mean_density = 0.31
    ramp_until = 0.2

    [budgets]    # if any: density at full sparsity of a layer, or of each of its heads
    0 = 0.6
    3 = [0.1, 0.4, 0.25, 0.25]

Other tables are for people, and are not read: ``vidsparse tune`` writes what it was made for, with
what versions, and what to expect.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.preset import Preset

LONGEST = 10_000_000  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetFile:
    """What a preset file says.

    Attributes:
        path: The file.
        name: Of the preset.
        base: Name of the preset that it changes.
        summary: One sentence.
        parameters: What is changed.
        budgets: Densities by layer; empty for none.
        told: Further tables, for people.
    """

    path: Path
    name: str
    base: str
    summary: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    budgets: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> PresetFile:
        """Read a file.

        Raises:
            BadInputError: When it cannot be read, or is no preset file.
        """
        try:
            if path.stat().st_size > LONGEST or not path.is_file():
                raise BadInputError(f"{path} is no preset file: it is no file, or far too long")
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInputError(f"cannot read the preset {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path} is no TOML: {error}") from error
        known = {"name": str, "base": str, "summary": str, "parameters": dict, "budgets": dict}
        given = {name: content[name] for name in known if name in content}
        for name, kind in known.items():
            if name in ("name", "base") and name not in given:
                raise BadInputError(f"{path} is no preset file: it has no {name}")
            if name in given and not isinstance(given[name], kind):
                word = "a table" if kind is dict else "text"
                raise BadInputError(f"{name} in {path} must be {word}, got {given[name]!r}")
        if re.search(r"\.(py|toml)\b", given["base"]):
            raise BadInputError(
                f"base in {path} is {given['base']!r}: it must be the name of a preset, since a "
                "file would run code, or go on to another"
            )
        told = {key: each for key, each in content.items() if key not in known}
        return cls(path=path, told=told, **given)

    def preset(self, base: Preset) -> Preset:
        """The preset.

        Args:
            base: That it changes.

        Raises:
            BadInputError: For parameters that the base does not have, or budgets that are none.
        """
        changes = dict(self.parameters)
        if self.budgets:
            changes["budgets"] = Budgets.made_of(str(self.path), self.budgets)
        try:
            changed = base.override(changes)
        except BadInputError as error:
            raise BadInputError(f"{self.path}: {error}") from error
        summary = self.summary or f"{base.name}, changed"
        return dataclasses.replace(changed, name=self.name, summary=summary, source=str(self.path))

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            CannotWriteError: When the system refuses.
        """
        heads = [("name", self.name), ("base", self.base), ("summary", self.summary)]
        lines = [f"{name} = {_value(value)}" for name, value in heads if value]
        tables = {"parameters": self.parameters, "budgets": self.budgets, **self.told}
        for name, table in tables.items():
            if table:
                lines += ["", f"[{name}]"]
                lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
        text = "\n".join(lines) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda part: part.write_text(text, encoding="utf-8"))


def changed_parameters(preset: Preset, base: Preset) -> dict[str, Any]:
    """The parameters that make a preset of its base, plain, without budgets; None is left out.

    Raises:
        BadInputError: When they do not.
    """
    before, now = base.plain_parameters(), preset.plain_parameters()
    changes = {
        name: value
        for name, value in now.items()
        if name != "budgets" and value is not None and before.get(name) != value
    }
    made = base.override(changes | {"budgets": preset.schedule.budgets} if preset.schedule.budgets
                         else changes)  # fmt: skip
    if dataclasses.replace(made, name="", summary="", source="") != dataclasses.replace(
        preset, name="", summary="", source=""
    ):
        raise BadInputError(
            f"{preset.name} differs from {base.name} in more than parameters: a preset file cannot "
            "say it"
        )
    return changes


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: Any) -> str:
    """A value as TOML writes it.

    Raises:
        TypeError: For what TOML has no word for.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(_value(each) for each in value)}]"
        case dict():
            inner = ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items())
            return f"{{{inner}}}"
    raise TypeError(f"TOML has no word for {value!r}")
