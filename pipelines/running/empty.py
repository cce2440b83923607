"""Modules without weights, made of a config that anybody may have written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.configs import read_config

MOST_MODULES = 50_000  # the largest models have some thousands


def empty_component(folder: Path, kind: Any) -> Any:
    """A component of a class of diffusers, its weights on the meta device.

    Raises:
        BadInputError: When its config cannot be read, or diffusers cannot make it of that.
    """
    config = read_config(folder / kind.config_name, folder.name)
    what = f"diffusers cannot make a {kind.__name__} of {folder}"
    with explained(what), weightless(), at_most(MOST_MODULES):
        return kind.from_config(config)


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made have their weights on the meta device.

    Accelerate moves each weight there once it is made; made there in the first place, it leaves no
    hole in this process's memory, of which a process with gigabytes of them cannot be forked.
    """
    from accelerate import init_empty_weights

    empty = torch.empty

    def on_meta(*size: Any, device: Any = None, **named: Any) -> torch.Tensor:
        return empty(*size, device="meta" if device is None else device, **named)

    torch.empty = on_meta
    try:
        with init_empty_weights():
            yield
    finally:
        torch.empty = empty


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in one sentence why a library could not make something of what it was given.

    Raises:
        BadInputError: Instead of whatever it raised.
    """
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:  # a library that is given anything raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{what}: {reason}") from error


@contextlib.contextmanager
def at_most(modules: int) -> Iterator[None]:
    """Stop a model that is being made of more modules than any has.

    Raises:
        BadInputError: When there are more.
    """
    count = 0

    def counted(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > modules:
            raise BadInputError(
                f"the config asks for more than {modules:,} modules, as no model has: download "
                "the model again"
            )

    hook = nn.modules.module.register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
