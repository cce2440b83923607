"""A pipeline without its weights: what a folder's configs say, asked of diffusers' own classes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.configs import read_index, read_json
from vidsparse.pipelines.running.empty import empty_component, explained
from vidsparse.pipelines.running.offline import import_diffusers, without_network

__all__ = ["component_class", "diffusers_class", "read_json", "skeleton"]

_READ = ("transformer", "transformer_2", "vae", "scheduler", "guider")


def skeleton(folder: Path) -> Any:
    """Build the pipeline of a folder with empty weights and without its text encoders.

    It takes a second and no memory, whatever the size of the model.

    Raises:
        BadInputError: When a config is missing or cannot be read, diffusers does not know a class
            or cannot make one of its config, or the pipeline has no transformer or no VAE.
    """
    index = read_index(folder)
    settings, components = index.model_extra or {}, index.components()
    with without_network():
        kind = pipeline_class(index.pipeline, folder)
        parts = {
            name: empty_component(folder / name, component_class(*components[name], folder / name))
            for name in _READ
            if name in components
        }
    if "vae" not in parts or not parts.keys() & {"transformer", "transformer_2"}:
        raise BadInputError(
            f"{kind.__name__} of {folder} has no transformer or no VAE: vidsparse makes the "
            "attention of diffusion transformers sparse, which U-Nets and cascades are not"
        )
    arguments = {
        name: parts.get(name, _plain(settings.get(name)))
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and (parameter.default is parameter.empty or name in parts | settings)
    }
    with explained(f"diffusers cannot make a {kind.__name__} of {folder}"):
        return kind(**arguments)


def pipeline_class(name: str, folder: Path) -> Any:
    """The class of a pipeline.

    Raises:
        BadInputError: When diffusers has none of this name.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    found = diffusers_class(name, folder)
    if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
        raise BadInputError(
            f"{name}, which {folder} asks for, is no pipeline of diffusers: download the model "
            "again"
        )
    return found


def component_class(library: str, name: str, folder: Path) -> Any:
    """The class of a component of diffusers.

    Raises:
        BadInputError: When there is none, or it is not made of a config.
    """
    import diffusers
    from diffusers.configuration_utils import ConfigMixin

    own = getattr(diffusers.pipelines, library, None)  # some pipelines bring a class of their own
    found = getattr(own, name, None) or diffusers_class(name, folder)
    if not (isinstance(found, type) and issubclass(found, ConfigMixin)):
        raise BadInputError(
            f"{name}, which {folder} asks for, is no component of diffusers: download the model "
            "again"
        )
    return found


def diffusers_class(name: object, asked_by: Path) -> Any:
    """A class of diffusers by its name.

    Raises:
        BadInputError: When there is none.
    """
    import_diffusers()
    import diffusers

    found = getattr(diffusers, str(name), None)
    if found is None:
        raise BadInputError(
            f"diffusers {diffusers.__version__} has no {name}, which {asked_by} asks for: update "
            "diffusers"
        )
    return found


def _plain(entry: Any) -> Any:
    """A setting of the pipeline; a component that is not read is left out."""
    return None if isinstance(entry, list) else entry
