"""The blocks of a transformer, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vidsparse.errors import BadInputError


def compile_blocks(transformer: nn.Module, **how: Any) -> None:
    """Let diffusers compile the repeated blocks of one of its transformers.

    Args:
        transformer: Of diffusers.
        how: As ``torch.compile`` takes it.

    Raises:
        BadInputError: When diffusers does not know which blocks those are.
    """
    _repeated(transformer)
    transformer.compile_repeated_blocks(**how)  # type: ignore[operator]


def compile_within_hooks(transformer: nn.Module, **how: Any) -> None:
    """Compile what the repeated blocks do, so that hooks which come later stay outside.

    A hook of diffusers, such as that of a cache, takes the place of a block's ``forward`` and keeps
    the one that it found. That one is compiled, so the hook decides in plain Python, and one graph
    serves all blocks; ``compile_repeated_blocks`` has the hook in the graph, which then is another
    for every block.

    Args:
        transformer: Of diffusers, before it has a cache.
        how: As ``torch.compile`` takes it.

    Raises:
        BadInputError: When diffusers does not know which blocks those are.
    """
    for block in _repeated(transformer):
        block.forward = torch.compile(block.forward, **how)


def is_compiled(transformer: nn.Module) -> bool:
    """Whether a transformer is compiled, or a part of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in transformer.modules()
    )


def _repeated(transformer: nn.Module) -> list[nn.Module]:
    names = getattr(transformer, "_repeated_blocks", None) or ()
    found = list(_of_classes(transformer, names))
    if not found:
        raise BadInputError(
            f"diffusers does not know which blocks of {type(transformer).__name__} to compile: "
            "leave --compile out"
        )
    return found


def _of_classes(transformer: nn.Module, names: Any) -> Iterator[nn.Module]:
    return (module for module in transformer.modules() if type(module).__name__ in names)
