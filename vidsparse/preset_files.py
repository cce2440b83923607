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

What ``vidsparse calibrate`` found stands in ``[[choices]]`` or ``[[margins]]``, see
``calibrated.py``, and what is too large for that in a file beside it:

    [masks]
    file = "tuned.safetensors"    # in the same folder
    sha256 = "..."

Other tables are for people, and are not read: ``vidsparse tune`` writes what it was made for, with
what versions, and what to expect.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsparse.budgets import Budgets
from vidsparse.calibrated import TABLES, Calibrated
from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.of_model import TRANSFORMERS, as_table
from vidsparse.preset import Preset
from vidsparse.stored_masks import StoredMasks
from vidsparse.toml import toml_key, toml_value

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
        calibrated: What was found offline, by the name of the parameter.
        masks: Name and checksum of a file of masks in the same folder; empty for none.
        told: Further tables, for people.
    """

    path: Path
    name: str
    base: str
    summary: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    budgets: Mapping[str, Any] = field(default_factory=dict)
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
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
        known["masks"] = dict
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
        read = ((name, Calibrated.made_of(str(path), name, content)) for name in TABLES)
        calibrated = {name: each for name, each in read if each is not None}
        ours = {*known, *TABLES, TRANSFORMERS}
        told = {key: each for key, each in content.items() if key not in ours}
        return cls(path=path, told=told, calibrated=calibrated, **given)

    def preset(self, base: Preset) -> Preset:
        """The preset.

        Args:
            base: That it changes.

        Raises:
            BadInputError: For parameters that the base does not have, or budgets that are none.
        """
        changes = {**self.parameters, **self.calibrated}
        if self.masks:
            changes["mask_file"] = self._read_masks()
        if self.budgets:
            changes["budgets"] = Budgets.made_of(str(self.path), self.budgets)
        try:
            changed = base.override(changes)
        except BadInputError as error:
            raise BadInputError(f"{self.path}: {error}") from error
        summary = self.summary or f"{base.name}, changed"
        return dataclasses.replace(changed, name=self.name, summary=summary, source=str(self.path))

    def _read_masks(self) -> StoredMasks:
        name, sha256 = self.masks.get("file"), self.masks.get("sha256")
        if not isinstance(name, str) or Path(name).name != name or not isinstance(sha256, str):
            raise BadInputError(
                f"[masks] in {self.path} must have the name of a file in the same folder, and its "
                f"sha256, got {dict(self.masks)}"
            )
        return StoredMasks.read(str(self.path.parent / name), sha256)

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            CannotWriteError: When the system refuses.
        """
        heads = [("name", self.name), ("base", self.base), ("summary", self.summary)]
        lines = [f"{name} = {toml_value(value)}" for name, value in heads if value]
        of = next((as_table(each.layers) for each in self.calibrated.values()), {})
        tables = {"parameters": self.parameters, "budgets": self.budgets, "masks": self.masks}
        tables |= {TRANSFORMERS: of, **self.told}
        for name, table in tables.items():
            if table:
                lines += ["", f"[{name}]"]
                lines += [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items()]
        lines += ["\n" + each.toml(name).rstrip() for name, each in self.calibrated.items()]
        text = "\n".join(lines) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda part: part.write_text(text, encoding="utf-8"))


def changed_parameters(preset: Preset, base: Preset) -> dict[str, Any]:
    """The parameters that make a preset of its base, plain, without budgets; None is left out.

    Raises:
        BadInputError: When they do not.
    """
    before, now = base.plain_parameters(), preset.plain_parameters()
    changes: dict[str, Any] = {
        name: value
        for name, value in now.items()
        if name != "budgets" and value is not None and before.get(name) != value
    }
    if "mean_density" in changes and "ramp_until" in now:
        changes["ramp_until"] = now["ramp_until"]  # or the density would bring its own
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
