"""Masks of blocks that were made offline, for each layer, head and part of a run."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.grid import TokenGrid
from vidsparse.of_model import Layers, OfModel, as_table, read_transformers

FACTS = "vidsparse"  # the key of what a file says of itself


@dataclass(frozen=True)
class StoredMasks(OfModel):
    """Which blocks each head keeps, in parts of the run.

    The file is of safetensors: for each part, transformer and layer a tensor ``PART/EXPERT/LAYER``,
    uint8 ``(heads, M, ceil(N / 8))``, a bit for each block. It is read layer by layer.

    Attributes:
        sha256: Of the file.
        grid: The tokens that the masks are of.
        block: Tokens in a block.
        density: Mean of all masks.
        ends: Until which share of the run each part goes.
    """

    sha256: str
    grid: TokenGrid
    block: int
    density: float
    ends: tuple[float, ...]

    @classmethod
    def read(cls, path: str, sha256: str | None = None) -> StoredMasks:
        """Read what a file says of itself.

        Args:
            path: The file.
            sha256: Its checksum; None if nobody says it.

        Raises:
            BadInputError: When it cannot be read, holds something else, or is another file.
        """
        try:
            with Path(path).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 is not None and found != sha256:
                raise BadInputError(
                    f"the masks {path} are not those of the preset file that names them (its "
                    "checksum is another): calibrate again, or put the right file there"
                )
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[FACTS])
            grid, layers = TokenGrid(*facts["grid"]), read_transformers(path, facts["layers"])
            numbers = int(facts["block"]), float(facts["density"]), tuple(facts["ends"])
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, BadInputError):
                raise
            raise BadInputError(
                f"cannot read the masks {path}, such as vidsparse calibrate paro writes: {error}"
            ) from error
        return cls(path, layers, found, grid, *numbers)

    def of(self, expert: str, layer: int, done: float) -> Tensor:
        """The bits of a layer, uint8 ``(heads, M, ceil(N / 8))``, on the CPU.

        In a run whose transformers change at another step the nearest part has it.

        Args:
            expert: Which transformer of the pipeline.
            layer: Its number.
            done: Share of the run that is done when the step begins; after the last part, that
                one's.

        Raises:
            BadInputError: When there is nothing of this layer.
        """
        ends = self.ends
        part = next((at for at, end in enumerate(ends) if done < end), len(ends) - 1)
        file, has = _opened(self.path, self.sha256)
        for at in sorted(range(len(ends)), key=lambda at: abs(at - part)):
            if (name := f"{at}/{expert}/{layer}") in has:
                return file.get_tensor(name)
        raise BadInputError(f"the masks {self.path} have none for layer {layer} of the {expert}")

    def check_grid(self, frames: int, height: int, width: int) -> None:
        """Raise BadInputError for a video of another size."""
        of = self.grid
        if (frames, height, width) != (of.frames, of.height, of.width):
            raise BadInputError(
                f"the masks {self.path} are of {of.frames} x {of.height} x {of.width} tokens, and "
                f"this video has {frames} x {height} x {width}: calibrate at this size"
            )


def write_masks(
    path: Path,
    masks: Mapping[tuple[int, str, int], Tensor],
    *,
    layers: Layers,
    grid: TokenGrid,
    block: int,
    density: float,
    ends: tuple[float, ...],
) -> StoredMasks:
    """Write a file that ``StoredMasks.read`` reads.

    Args:
        path: Of the file.
        masks: Bits by part, transformer and layer.
        layers: As in ``StoredMasks``, and so are the others.
        grid: Of tokens.
        block: Tokens in a block.
        density: Mean of all masks.
        ends: Of the parts.

    Raises:
        CannotWriteError: When the system refuses.
    """
    sides = (grid.frames, grid.height, grid.width, grid.prefix, grid.suffix)
    facts: dict[str, Any] = {"grid": sides, "layers": as_table(layers), "block": block}
    facts |= {"density": density, "ends": ends}
    tensors = {f"{part}/{name}/{layer}": bits for (part, name, layer), bits in masks.items()}

    def write(part: Path) -> None:
        try:
            save_file(tensors, part, {FACTS: json.dumps(facts)})
        except SafetensorError as error:
            raise OSError(str(error)) from error

    replace_file(path, write)
    return StoredMasks.read(str(path))


@functools.lru_cache(maxsize=4)
def _opened(path: str, sha256: str) -> tuple[Any, frozenset[str]]:
    """An open file and its tensors, by its content: another of the same name is opened anew."""
    file = safe_open(path, "pt")
    return file, frozenset(file.keys())
