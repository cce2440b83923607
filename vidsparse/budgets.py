"""Budgets from a file: a density for each layer, or for each head of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError

Densities = tuple[float, ...]
"""Of the heads of a layer, or one for all of them."""


@dataclass(frozen=True)
class Budgets:
    """Densities at full sparsity, instead of the policy's own.

    The file is JSON: layer numbers, or ``EXPERT/LAYER`` where a pipeline has two transformers, to a
    density or a list with one for each head. Layers that are not named keep the policy's density.

        {"0": 0.6, "3": [0.1, 0.4, 0.25, 0.25], "transformer_2/3": 0.2}

    Attributes:
        path: The file.
        layers: Its content.
    """

    path: str
    layers: tuple[tuple[str, Densities], ...]

    @classmethod
    def read(cls, path: str) -> Budgets:
        """Read a file.

        Raises:
            BadInputError: When it cannot be read, or holds something else.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise BadInputError(f"cannot read the budgets file {path}: {error}") from None
        if not isinstance(content, Mapping):
            raise BadInputError(f"the budgets file {path} must map layers to densities")
        layers = {str(name): _densities(path, name, value) for name, value in content.items()}
        return cls(str(path), tuple(sorted(layers.items())))

    def of(self, expert: str, layer: int, heads: int) -> Densities | None:
        """The densities of a layer, None if it is not named.

        Raises:
            BadInputError: When there is a density for another number of heads.
        """
        named = dict(self.layers)
        found = named.get(f"{expert}/{layer}", named.get(str(layer)))
        if found is not None and len(found) not in (1, heads):
            raise BadInputError(
                f"the budgets file {self.path} has {len(found)} densities for layer {layer}, which "
                f"has {heads} heads"
            )
        return found

    def __str__(self) -> str:
        return self.path


def _densities(path: str, layer: str, value: Any) -> Densities:
    values = value if isinstance(value, list) else [value]
    number = layer.rpartition("/")[2]
    if not number.isdecimal():
        raise BadInputError(f"the budgets file {path} names layer {layer!r}: give its number")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 < each <= 1:
            raise BadInputError(
                f"the budgets file {path} gives layer {layer} the density {each!r}: it must be in "
                "(0, 1]"
            )
    if not values:
        raise BadInputError(f"the budgets file {path} gives layer {layer} no density")
    return tuple(float(each) for each in values)
