"""The blocks of a transformer, compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.models import find_model


def compile_blocks(transformer: nn.Module, **how: Any) -> None:
    """Let diffusers compile the repeated blocks of one of its transformers.

    Args:
        transformer: Of diffusers.
        how: As ``torch.compile`` takes it.

    Raises:
        BadInputError: When diffusers does not know which blocks those are.
    """
    if not _repeated(transformer):
        raise BadInputError(
            f"diffusers does not know which blocks of {type(transformer).__name__} to compile: "
            "leave --compile out"
        )
    transformer.compile_repeated_blocks(**how)  # type: ignore[operator]


def compile_within_hooks(transformer: nn.Module, **how: Any) -> None:
    """Compile what blocks do, so that hooks which come later stay outside.

    A hook of diffusers, such as that of a cache, takes the place of a block's ``forward`` and keeps
    the one that it found. That one is compiled, so the hook decides in plain Python, and one graph
    serves all blocks; ``compile_repeated_blocks`` has the hook in the graph, which then is another
    for every block.

    Args:
        transformer: Of diffusers, before it has a cache. Where diffusers does not know its repeated
            blocks, those that hold self-attention are compiled.
        how: As ``torch.compile`` takes it.
    """
    lists = find_model(transformer).block_lists(transformer).values()
    for block in _repeated(transformer) or [block for blocks in lists for block in blocks]:
        block.forward = torch.compile(block.forward, **how)


def _repeated(transformer: nn.Module) -> list[nn.Module]:
    names = getattr(transformer, "_repeated_blocks", None) or ()
    return [module for module in transformer.modules() if type(module).__name__ in names]
