"""A pipeline without its weights: what a folder's configs say, asked of diffusers' own classes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError

_READ = ("transformer", "transformer_2", "vae", "scheduler", "guider")


def skeleton(folder: Path) -> Any:
    """Build the pipeline of a folder with empty weights and without its text encoders.

    It takes a second and no memory, whatever the size of the model.

    Raises:
        BadInputError: When a config is missing or cannot be read, diffusers does not know a class
            or cannot make one of its config, or the pipeline has no transformer or no VAE.
    """
    index = read_json(folder / "model_index.json")
    kind = diffusers_class(index.get("_class_name"), folder)
    parts = {name: _part(folder / name, index[name]) for name in _READ if _is_there(index, name)}
    if "vae" not in parts or not parts.keys() & {"transformer", "transformer_2"}:
        raise BadInputError(
            f"{kind.__name__} of {folder} has no transformer or no VAE: vidsparse makes the "
            "attention of diffusion transformers sparse, which U-Nets and cascades are not"
        )
    arguments = {
        name: parts.get(name, _plain(index.get(name)) if name in index else None)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and (parameter.default is parameter.empty or name in parts | index)
    }
    try:
        return kind(**arguments)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise BadInputError(
            f"diffusers cannot make a {kind.__name__} of {folder}: {error}"
        ) from error


def diffusers_class(name: object, asked_by: Path) -> Any:
    """A class of diffusers by its name.

    Raises:
        BadInputError: When there is none.
    """
    import diffusers

    found = getattr(diffusers, str(name), None)
    if found is None:
        raise BadInputError(
            f"diffusers {diffusers.__version__} has no {name}, which {asked_by} asks for: update "
            "diffusers"
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read one config of a model folder.

    Raises:
        BadInputError: When it is missing or is not a JSON object.
    """
    way_out = "download the model again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(
            f"the model folder is incomplete, {path} is missing: {way_out}, or give the folder "
            "that holds model_index.json"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read as JSON ({error}): {way_out}") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} does not hold a JSON object: {way_out}")
    return value


def _is_there(index: dict[str, Any], name: str) -> bool:
    """Whether a component is named, and not left out with ``[null, null]``."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and all(entry)


def _plain(entry: Any) -> Any:
    """A setting of the pipeline; a component that is not read is left out."""
    return None if isinstance(entry, list) else entry


def _part(folder: Path, entry: list[str]) -> Any:
    from accelerate import init_empty_weights

    kind = diffusers_class(entry[1], folder)
    config = read_json(folder / kind.config_name)
    try:
        with init_empty_weights():
            return kind.from_config(config)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise BadInputError(
            f"diffusers cannot make a {kind.__name__} of {folder}: {error}"
        ) from error
