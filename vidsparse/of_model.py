"""What was found for one model is refused on another, in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidsparse.errors import BadInputError

Transformers = Mapping[str, tuple[int, int | None]]
"""Self-attention layers of each transformer, and the heads of a layer, None if not known."""
Layers = tuple[tuple[str, int, int | None], ...]
"""The same, as a file keeps it."""
TRANSFORMERS = "transformers"  # the table of a file that says it
NUMBERS = "layers", "heads"


@dataclass(frozen=True)
class OfModel(ABC):
    """What was found for one model.

    Attributes:
        path: The file.
        layers: Self-attention layers of each transformer of that model by its name, and heads of a
            layer, None where they differ; empty where the file does not say.
    """

    path: str
    layers: Layers

    def check_layers(self, number: int | None) -> None:
        """Raise BadInputError for a model whose transformers have another number of layers.

        Args:
            number: Self-attention layers; None if they are not known.
        """
        for name, layers, _ in self.layers:
            if number is not None and layers != number:
                raise BadInputError(
                    f"{self.path} was calibrated for {layers} layers in the {name}, and this model "
                    f"has {number}: calibrate this model"
                )

    def check_model(self, transformers: Transformers) -> None:
        """Raise BadInputError for a model with other transformers, layers or heads."""
        of = {name: (layers, heads) for name, layers, heads in self.layers}
        if of and of != dict(transformers):
            raise BadInputError(
                f"{self.path} was calibrated for {said(of)}, and this model has "
                f"{said(transformers)}: calibrate this model"
            )

    @abstractmethod
    def check_grid(self, frames: int, height: int, width: int) -> None:
        """Raise BadInputError for a video of latent frames, rows and columns that it is not for."""

    def __str__(self) -> str:
        return self.path


def said(transformers: Transformers) -> str:
    """Layers and heads, in words.

    Example:
        >>> said({"transformer": (30, 12)})
        '30 layers of 12 heads in the transformer'
    """
    found = (
        f"{layers} layers" + ("" if heads is None else f" of {heads} heads") + f" in the {name}"
        for name, (layers, heads) in transformers.items()
    )
    return " and ".join(found)


def read_transformers(path: str, table: Any) -> Layers:
    """What a file says of its model.

    Args:
        path: The file.
        table: Its table ``TRANSFORMERS``.

    Raises:
        BadInputError: When the table holds something else.
    """
    found = []
    for name, each in table.items() if isinstance(table, Mapping) else [("", None)]:
        layers, heads = (each.get(k) if isinstance(each, Mapping) else 0 for k in NUMBERS)
        if not isinstance(layers, int) or not isinstance(heads, int | None) or layers < 1:
            raise BadInputError(
                f"[{TRANSFORMERS}] in {path} must give each transformer its layers and heads, such "
                "as transformer = {layers = 30, heads = 12}"
            )
        found.append((name, layers, heads))
    return tuple(found)


def as_table(layers: Layers) -> dict[str, dict[str, int]]:
    """The table that is read so."""
    return {
        name: {"layers": number} | ({} if heads is None else {"heads": heads})
        for name, number, heads in layers
    }
