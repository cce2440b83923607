"""What was found offline for each layer and head, kept in a file that a preset reads."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.files import replace_file

Value = float | str
Values = tuple[Value, ...]
"""Of the heads of a layer, or one for all of them."""
Part = tuple[float, tuple[tuple[str, Values], ...]]
"""Until which share of the run, and the values of its layers by name."""


@dataclass(frozen=True)
class Calibrated:
    """Values of layers and heads, which may differ from one part of a run to the next.

    The file is TOML: parts in the order of the run, each with the share of the run where it ends,
    and in it layer numbers, or ``EXPERT/LAYER`` where a pipeline has two transformers, with a value
    for each head or one for all.

        method = "lite-attention"

        [[part]]
        until = 0.5

        [part.layers]
        0 = [-8.0]
        "transformer_2/0" = [-6.0, -7.0]

    Attributes:
        path: The file.
        method: The preset that it was made for.
        parts: Its content.
    """

    path: str
    method: str
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, path: str) -> Calibrated:
        """Read a file.

        Raises:
            BadInputError: When it cannot be read, or holds something else.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInputError(f"cannot read the calibration file {path}: {error}") from None
        parts = content.get("part")
        if not isinstance(parts, list) or not parts or not isinstance(content.get("method"), str):
            raise BadInputError(
                f"the calibration file {path} must have a method and a [[part]] with until and "
                "layers"
            )
        read = tuple(_part(path, each) for each in parts)
        ends = [until for until, _ in read]
        if ends != sorted(set(ends)):
            raise BadInputError(
                f"the parts of the calibration file {path} must end in ascending "
                f"order, got until = {', '.join(f'{end:g}' for end in ends)}"
            )
        return cls(str(path), content["method"], read)

    def of(self, expert: str, layer: int, done: float, heads: int) -> Values | None:
        """The values of a layer, one for each head; None if it is not named.

        Args:
            expert: Which transformer of the pipeline.
            layer: Its number.
            done: Share of the run that is done when the step begins; after the last part, that
                one's.
            heads: Of the layer.

        Raises:
            BadInputError: When there are values for another number of heads.
        """
        part = next((layers for until, layers in self.parts if done < until), self.parts[-1][1])
        named = dict(part)
        found = named.get(f"{expert}/{layer}", named.get(str(layer)))
        if found is None or len(found) == heads:
            return found
        if len(found) != 1:
            raise BadInputError(
                f"the calibration file {self.path} has {len(found)} values for layer {layer}, "
                f"which has {heads} heads"
            )
        return found * heads

    def check(self, method: str, known: Sequence[str] | None = None) -> None:
        """Raise BadInputError for values that are not those of a method.

        Args:
            method: What reads the file, in the user's words.
            known: The names that a value may be; None for numbers.
        """
        for _, layers in self.parts:
            for layer, values in layers:
                for value in values:
                    fits = (
                        isinstance(value, str) and value in known
                        if known
                        else (isinstance(value, float))
                    )
                    if not fits:
                        takes = f"one of {', '.join(known)}" if known else "a number"
                        raise BadInputError(
                            f"the calibration file {self.path} gives layer {layer} {value!r}, and "
                            f"{method} takes {takes}"
                        )

    def __str__(self) -> str:
        return self.path


def write_calibrated(
    path: str | Path, method: str, parts: Sequence[tuple[float, Mapping[str, Sequence[Value]]]]
) -> Path:
    """Write a file that ``Calibrated.read`` reads.

    Args:
        path: Of the file.
        method: The preset that it is for.
        parts: Until which share of the run, and the values of layers by name, in order.

    Returns:
        The path.
    """
    lines = [f'method = "{method}"']
    for until, layers in parts:
        lines += ["", "[[part]]", f"until = {float(until)}", "", "[part.layers]"]
        for name, values in layers.items():
            said = ", ".join(f'"{v}"' if isinstance(v, str) else repr(float(v)) for v in values)
            lines.append(f'"{name}" = [{said}]')
    path, text = Path(path), "\n".join([*lines, ""])
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


KEYS = ("until", "layers")


def _part(path: str, part: Any) -> Part:
    until, layers = (part.get(name) if isinstance(part, Mapping) else None for name in KEYS)
    if not isinstance(until, int | float) or not 0 < until <= 1 or not isinstance(layers, Mapping):
        raise BadInputError(
            f"a part of the calibration file {path} must have until, the share of the run where "
            f"it ends in (0, 1], and layers; got until = {until!r}"
        )
    return float(until), tuple((name, _values(path, name, each)) for name, each in layers.items())


def _values(path: str, layer: str, value: Any) -> Values:
    values = value if isinstance(value, list) else [value]
    right = [isinstance(v, str | int | float) and not isinstance(v, bool) for v in values]
    if not layer.rpartition("/")[2].isdecimal() or not values or not all(right):
        raise BadInputError(
            f"the calibration file {path} gives layer {layer!r} {value!r}: name a layer by its "
            "number, and give a value for each head or one for all"
        )
    return tuple(v if isinstance(v, str) else float(v) for v in values)
