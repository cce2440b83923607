"""Pipelines of the model table with empty weights, as their authors publish them: no download."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from vidsparse.pipelines.model import Hub, Model, Release
from vidsparse.pipelines.models import IMAGE, VIDEO
from vidsparse.pipelines.running.empty import explained, weightless
from vidsparse.pipelines.running.offline import without_network
from vidsparse.pipelines.running.skeleton import diffusers_class, pipeline_class


def named_releases() -> dict[str, tuple[Model, Release, Hub]]:
    """The releases that have a name on the command line, by that name, each with its row."""
    return {
        release.hub.short: (row, release, release.hub)
        for row in VIDEO + IMAGE
        for release in row.releases
        if release.hub is not None
    }


@cache
def named_transformer(short: str) -> Any:
    """The first transformer of a name in ``named_releases``, with empty weights.

    Made once: nobody changes it.
    """
    return _transformer(short)


def _transformer(short: str) -> Any:
    row, release, hub = named_releases()[short]
    with without_network(), weightless():
        return diffusers_class(row.transformers[0], Path(hub.repository))(**release.config)


@cache
def named_skeleton(short: str) -> Any:
    """The pipeline of a name in ``named_releases``, as ``skeleton`` makes one of a folder.

    Made once: nobody changes it.
    """
    _, release, hub = named_releases()[short]
    table = Path(hub.repository)
    made = [named_transformer(short), *(_transformer(short) for _ in range(1, release.experts))]
    with without_network(), weightless():
        kind = pipeline_class(hub.pipeline, table)
        parts: dict[str, Any] = dict(zip(("transformer", "transformer_2"), made, strict=False))
        for name, (part, config) in (("scheduler", hub.scheduler), ("vae", hub.vae)):
            parts[name] = diffusers_class(part, table)(**config)
    given = parts | dict(hub.settings)
    arguments = {
        name: given.get(name)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and (parameter.default is parameter.empty or name in given)
    }
    with explained(f"diffusers cannot make a {hub.pipeline} of {hub.repository}"):
        return kind(**arguments)
