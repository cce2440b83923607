"""Parameters by name: what a part has, and text read as what it takes."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from enum import StrEnum
from os import PathLike
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import numpy as np

from vidsparse.budgets import Budgets
from vidsparse.calibrated import Calibrated
from vidsparse.errors import BadInputError
from vidsparse.policies.parts import KINDS, PARTS
from vidsparse.stored_masks import StoredMasks


@functools.cache
def types_of(part: type) -> Mapping[str, Any]:
    """The parameters of a part, with their types: its fields, less those that hold parts."""
    held = ("alternatives", "candidates", "policy", "schedule")
    held += ("names", "name", "summary", "source", "told", "own_code")
    hints = get_type_hints(part)
    names = [field.name for field in dataclasses.fields(part)]
    return MappingProxyType({name: hints[name] for name in names if name not in (*PARTS, *held)})


def with_values(part: Any, values: Mapping[str, Any]) -> Any:
    """A part with the values that are its own; a class is made an object of."""
    own = {name: values[name] for name in types_of(class_of(part)) if name in values}
    return part(**own) if isinstance(part, type) else dataclasses.replace(part, **own)


def class_of(part: Any) -> type:
    """The class of a part, which may be given as that."""
    return part if isinstance(part, type) else type(part)


def read_part(name: str, value: Any) -> Any:
    """The class of a part by its name; a part itself is left as it is.

    Raises:
        BadInputError: With the near matches, when there is none of this name, or for another kind.
    """
    table = PARTS[name]
    if isinstance(value, str):
        text = value.strip().lower()
        if text not in table:
            raise BadInputError(f"unknown {name} {value!r}: {suggest(text, table)}")
        return table[text]
    if not isinstance(value, KINDS[name]):
        raise BadInputError(f"{name} takes {' or '.join(table)}, or such a part, got {value!r}")
    return value


def read_value(name: str, value: Any, kind: Any) -> Any:
    """Read text as the type of a parameter, and a path as a file of budgets or of a calibration.

    Raises:
        BadInputError: Naming what the parameter takes.
    """
    options = get_args(kind) or (kind,)
    if isinstance(value, PathLike):
        value = str(value)
    if not isinstance(value, str):
        return _of_type(name, value, options)
    text = value.strip().lower()
    if type(None) in options and text == "none":
        return None
    kind = options[0]
    if kind in (Budgets, Calibrated, StoredMasks):
        return kind.read(value.strip())
    try:
        return _SWITCH[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise BadInputError(f"{name} takes {_describe(kind)}, got {value!r}") from None


def _of_type(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int) and not isinstance(value, bool) and float in options:
        return float(value)
    is_switch = isinstance(value, bool) and bool not in options
    if is_switch or not isinstance(value, options):
        raise BadInputError(f"{name} takes {_describe(options[0])}, got {value!r}")
    return value


_SWITCH = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False
}  # fmt: skip


def _describe(kind: type) -> str:
    if issubclass(kind, StrEnum):
        return " or ".join(kind)
    words = {bool: "true or false", int: "a whole number", str: "text"}
    words |= {Budgets: "the path of a JSON file", Calibrated: "the path of a TOML file"}
    words[StoredMasks] = "the path of a safetensors file"
    return words.get(kind, "a number")


def suggest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, and what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}there is {', '.join(known)}"
