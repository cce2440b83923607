"""What was found offline for each layer and head, kept in a preset file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.of_model import TRANSFORMERS, OfModel, Transformers, read_transformers, said
from vidsparse.toml import toml_key, toml_value

Value = float | str
Values = tuple[Value, ...]
"""Of the heads of a layer, or one for all of them."""
Part = tuple[float, tuple[tuple[str, Values], ...]]
"""Until which share of the run, and the values of its layers by name."""
TABLES = ("choices", "margins")
"""The tables of parts, each named as the parameter that it is."""


@dataclass(frozen=True)
class Calibrated(OfModel):
    """Values of layers and heads, which may differ from one part of a run to the next.

    They stand in a preset file: parts in the order of the run, each with the share of the run where
    it ends, and in it layer numbers, or ``EXPERT/LAYER`` where a pipeline has two transformers,
    with a value for each head or one for all.

        name = "mine"
        base = "lite-attention"

        [transformers]
        transformer = {layers = 1, heads = 2}

        [[margins]]
        until = 0.5

        [margins.layers]
        0 = [-8.0]

        [[margins]]
        until = 1.0

        [margins.layers]
        0 = [-6.0, -7.0]

    Attributes:
        method: The preset that it was made for.
        parts: Its content.
    """

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
        found = [each for name in TABLES if (each := cls.made_of(path, name, content)) is not None]
        if len(found) != 1:
            raise BadInputError(
                f"the calibration file {path} must have a base and either [[choices]] or "
                "[[margins]], with until and layers, such as vidsparse calibrate writes"
            )
        return found[0]

    @classmethod
    def made_of(cls, path: str, table: str, content: Mapping[str, Any]) -> Calibrated | None:
        """What a file holds in one of ``TABLES``; None if nothing.

        Args:
            path: The file.
            table: The table.
            content: Of the file.

        Raises:
            BadInputError: When it holds something else.
        """
        parts = content.get(table)
        if parts is None:
            return None
        if not isinstance(parts, list) or not parts or not isinstance(content.get("base"), str):
            raise BadInputError(
                f"the calibration file {path} must have a base and its [[{table}]] until and layers"
            )
        read = tuple(_part(path, each) for each in parts)
        ends = [until for until, _ in read]
        if ends != sorted(set(ends)):
            raise BadInputError(
                f"the parts of the calibration file {path} must end in ascending "
                f"order, got until = {', '.join(f'{end:g}' for end in ends)}"
            )
        layers = read_transformers(path, content.get(TRANSFORMERS, {}))
        return cls(str(path), layers, content["base"], read)

    def of(self, expert: str, layer: int, done: float, heads: int) -> Values | None:
        """The values of a layer, one for each head; None if it is not named.

        What calibrating wrote names all layers, but of two transformers each in its own parts: in a
        run that changes to the other at another step the nearest part has the values.

        Args:
            expert: Which transformer of the pipeline.
            layer: Its number.
            done: Share of the run that is done when the step begins; after the last part, that
                one's.
            heads: Of the layer.

        Raises:
            BadInputError: When there are values for another number of heads.
        """
        at = next((i for i, (end, _) in enumerate(self.parts) if done < end), len(self.parts) - 1)
        found = self._named(at, expert, layer)
        if found is None and self.layers:
            others = sorted(range(len(self.parts)), key=lambda other: abs(other - at))
            each = (self._named(other, expert, layer) for other in others)
            found = next((values for values in each if values is not None), None)
        if found is None or len(found) == heads:
            return found
        if len(found) != 1:
            raise BadInputError(
                f"the calibration file {self.path} has {len(found)} values for layer {layer}, "
                f"which has {heads} heads"
            )
        return found * heads

    def _named(self, part: int, expert: str, layer: int) -> Values | None:
        named = dict(self.parts[part][1])
        return named.get(f"{expert}/{layer}", named.get(str(layer)))

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

    def check_model(self, transformers: Transformers) -> None:
        """Raise BadInputError for a model with other transformers, layers or heads."""
        super().check_model(transformers)
        for _, part in self.parts:
            for name, values in part:
                expert, _, layer = name.rpartition("/")
                fitting = [each for key, each in transformers.items() if expert in ("", key)]
                if not any(int(layer) < layers for layers, _ in fitting):
                    raise BadInputError(
                        f"the calibration file {self.path} names layer {name!r}, and this model "
                        f"has {said(transformers)}"
                    )
                heads = {heads for _, heads in fitting if heads is not None}
                if len(values) > 1 and heads and len(values) not in heads:
                    raise BadInputError(
                        f"the calibration file {self.path} has {len(values)} values for layer "
                        f"{name}, and this model has {said(transformers)}"
                    )

    def check_grid(self, frames: int, height: int, width: int) -> None:
        """Nothing: what heads choose is of a model, whatever the size of its videos."""

    def toml(self, table: str) -> str:
        """The parts as they stand in a file, in one of ``TABLES``."""
        return parts_as_toml(table, self.parts)


def parts_as_toml(table: str, parts: Sequence[Part]) -> str:
    """Parts as they stand in a file."""
    lines: list[str] = []
    for until, layers in parts:
        lines += [f"[[{table}]]", f"until = {float(until)!r}", "", f"[{table}.layers]"]
        lines += [f"{toml_key(name)} = {toml_value(values)}" for name, values in layers]
        lines.append("")
    return "\n".join(lines)


def write_calibrated(
    path: str | Path, method: str, parts: Sequence[tuple[float, Mapping[str, Sequence[Value]]]]
) -> Path:
    """Write a preset file that ``Calibrated.read`` reads; ``vidsparse calibrate`` says more in its.

    Args:
        path: Of the file.
        method: The preset that it is for.
        parts: Until which share of the run, and the values of layers by name, in order: names of
            alternatives, or margins.

    Returns:
        The path.
    """
    path = Path(path)
    plain: list[Part] = []
    for until, layers in parts:
        named = ((name, tuple(_plain(each) for each in layers[name])) for name in layers)
        plain.append((float(until), tuple(named)))
    values = [value for _, layers in plain for _, each in layers for value in each]
    table = "choices" if values and isinstance(values[0], str) else "margins"
    head = f"name = {toml_value(path.stem)}\nbase = {toml_value(method)}\n\n"
    text = head + parts_as_toml(table, plain)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


KEYS = "until", "layers"


def _plain(value: Value) -> Value:
    return value if isinstance(value, str) else float(value)


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
