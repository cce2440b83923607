"""Reading the configs of a model folder, which anybody may have written: checked before use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vidsparse.errors import BadInputError

LONGEST = 32 * 2**20  # bytes: the longest are indices of weights, a few megabytes
WIDEST = 1_000_000  # no number of a model's config but the base of its rotations is larger
WAY_OUT = "download the model again"


def read_json(path: Path) -> dict[str, Any]:
    """Read one config of a model folder.

    Raises:
        BadInputError: When it is missing, is no regular file, is absurdly long or deep, or is not
            a JSON object.
    """
    if not path.exists():
        raise BadInputError(
            f"the model folder is incomplete, {path} is missing: {WAY_OUT}, or give the folder "
            "that holds model_index.json"
        )
    check_regular(path)
    try:
        if path.stat().st_size > LONGEST:
            raise BadInputError(f"{path} is too long for a config: {WAY_OUT}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except BadInputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read as JSON ({error}): {WAY_OUT}") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} does not hold a JSON object: {WAY_OUT}")
    return value


def check_regular(path: Path) -> None:
    """Make sure that a path is a file that ends, not a pipe or a device.

    Raises:
        BadInputError: When it is not.
    """
    if not path.is_file():
        raise BadInputError(f"{path} is no regular file: {WAY_OUT}")


def _plain_name(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError("it must be a name without a path")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z_]\w{0,200}$")]
Count = Annotated[int, Field(ge=1, le=WIDEST)]
Counts = Annotated[list[Count], Field(min_length=1, max_length=8)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class ModelIndex(_Config):
    """``model_index.json``: the class of a pipeline, its components and its settings."""

    pipeline: Name = Field(alias="_class_name")

    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of each component; those left out with ``[null, null]`` are not."""
        extra = self.model_extra or {}
        return {
            name: (entry[0], entry[1])
            for name, entry in extra.items()
            if isinstance(entry, list) and len(entry) == 2 and all(entry)
        }


class _Component(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    library: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]{0,200}$")]
    kind: Name


class WeightIndex(_Config):
    """``*.safetensors.index.json``: the file of each tensor."""

    weight_map: dict[str, Annotated[str, AfterValidator(_plain_name)]]


class TransformerConfig(_Config):
    """What we read of a transformer's config ourselves; the rest is for diffusers."""

    patch_size: Count | Counts | None = None
    patch_size_t: Count | None = None
    all_patch_size: Counts | None = None
    in_channels: Count | None = None
    out_channels: Count | None = None
    sample_size: Count | Counts | None = None
    sample_height: Count | None = None
    sample_width: Count | None = None
    sample_frames: Count | None = None


class VaeConfig(_Config):
    """What we read of a VAE's config ourselves."""

    scale_factor_spatial: Count | None = None
    scale_factor_temporal: Count | None = None
    spatial_compression_ratio: Count | None = None
    temporal_compression_ratio: Count | None = None
    latent_channels: Count | None = None
    z_dim: Count | None = None
    block_out_channels: Annotated[list[Count], Field(max_length=16)] | None = None


class SchedulerConfig(_Config):
    """What we read of a scheduler's config ourselves."""

    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    use_flow_sigmas: bool | None = None
    use_dynamic_shifting: bool | None = None
    invert_sigmas: bool | None = None
    shift: float | None = None
    flow_shift: float | None = None
    base_shift: float | None = None
    max_shift: float | None = None
    base_image_seq_len: Count | None = None
    max_image_seq_len: Count | None = None


_Kind = TypeVar("_Kind", bound=BaseModel)
_KNOWN = {"transformer": TransformerConfig, "transformer_2": TransformerConfig, "vae": VaeConfig,
          "scheduler": SchedulerConfig}  # fmt: skip


def read_index(folder: Path) -> ModelIndex:
    """Read ``model_index.json``.

    Raises:
        BadInputError: When it cannot be read, or names what can be no pipeline or component.
    """
    path = folder / "model_index.json"
    index = _checked(ModelIndex, read_json(path), path)
    for name, (library, kind) in index.components().items():
        _checked(_Component, {"name": name, "library": library, "kind": kind}, path, name)
    return index


def read_config(path: Path, component: str) -> dict[str, Any]:
    """Read the config of a component that diffusers makes.

    Raises:
        BadInputError: When it cannot be read, what we use of it is of a wrong type, or a number in
            it is beyond all models.
    """
    config = read_json(path)
    for place, number in _numbers(config, ""):
        if not math.isfinite(number) or (abs(number) > WIDEST and "theta" not in place):
            raise BadInputError(f"{path} has {place} {number:g}, as no model has: {WAY_OUT}")
    if component in _KNOWN:
        _checked(_KNOWN[component], config, path)
    return config


def read_weight_map(path: Path) -> dict[str, str]:
    """Read which file holds each tensor.

    Raises:
        BadInputError: When the index cannot be read, or names a file of another folder.
    """
    return _checked(WeightIndex, read_json(path), path).weight_map


def _checked(kind: type[_Kind], value: dict[str, Any], path: Path, name: str = "") -> _Kind:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][:1]) or name
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise BadInputError(
            f"{path} has {name or place} {value.get(place, first['input'])!r}, but {said}: "
            f"{WAY_OUT}"
        ) from None


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number of a config, under the name that it has there."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value if isinstance(value, float) else float(min(max(value, -1e300), 1e300))
