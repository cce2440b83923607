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
        return cls.made_of(path, content)

    @classmethod
    def made_of(cls, path: str, content: Any) -> Budgets:
        """What a file holds.

        Args:
            path: The file.
            content: Densities by layer.

        Raises:
            BadInputError: When it is something else.
        """
        if not isinstance(content, Mapping):
            raise BadInputError(f"the budgets file {path} must map layers to densities")
        layers = {str(name): _densities(path, str(name), value) for name, value in content.items()}
        return cls(str(path), tuple(sorted(layers.items())))

    def of(self, expert: str, layer: int, heads: int) -> Densities | None:
        """The densities of a layer, None if it is not named.

        Raises:
            BadInputError: When there is a density for another number of heads.
        """
        found = self.named(expert, layer)
        if found is not None and len(found) not in (1, heads):
            raise BadInputError(
                f"the budgets file {self.path} has {len(found)} densities for layer {layer}, which "
                f"has {heads} heads"
            )
        return found

    @property
    def experts(self) -> frozenset[str]:
        """The transformers that are named."""
        return frozenset(name.rpartition("/")[0] for name, _ in self.layers) - {""}

    def named(self, expert: str, layer: int) -> Densities | None:
        """The densities of a layer whatever its number of heads, None if it is not named."""
        named = dict(self.layers)
        return named.get(f"{expert}/{layer}", named.get(str(layer)))

    def check(self, transformers: Mapping[str, tuple[int, int | None]]) -> None:
        """Check that the layers that are named are there, with as many heads.

        Args:
            transformers: Self-attention layers of each transformer of the pipeline, and heads of a
                layer, None where they are not known; by the transformer's name.

        Raises:
            BadInputError: For a transformer, a layer or a number of heads that is not there.
        """
        for name, _ in self.layers:
            expert, _, layer = name.rpartition("/")
            if expert and expert not in transformers:
                raise BadInputError(
                    f"the budgets file {self.path} names layer {name!r}, and there is no "
                    f"{expert}: there is {' and '.join(transformers)}"
                )
            most = max(transformers[each][0] for each in ([expert] if expert else transformers))
            if int(layer) >= most:
                raise BadInputError(
                    f"the budgets file {self.path} names layer {name!r}, and there are {most} "
                    f"layers: their numbers are 0 to {most - 1}"
                )
        for expert, (layers, heads) in transformers.items():
            for layer in range(layers if heads is not None else 0):
                self.of(expert, layer, heads or 0)

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
