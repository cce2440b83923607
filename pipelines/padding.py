"""Padding masks that stay what they are: one row for all queries.

Some models multiply a padding mask out to queries x keys before they call attention, anew for each
layer: 12.9 GB at a time in HunyuanVideo-1.5 at 720p, 121 frames. Others copy it for each layer, and
whoever reads it waits for the device each time. Handed a ``Padding`` instead of a plain tensor,
their own code neither allocates the one nor hides that it is still the same mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidsparse.pipelines.undo import Undo, drop_hooks

_KEEPS = {  # what a padding mask becomes by these is still the same padding
    torch.nn.functional.pad,
    torch.cat,
    Tensor.__getitem__,
    Tensor.bool,
    Tensor.reshape,
    Tensor.to,
    Tensor.transpose,
    Tensor.unsqueeze,
    Tensor.view,
}


class Padding(Tensor):
    """Which tokens take part, boolean; a row of it for each query is a view.

    Queries that are padding themselves attend to what all others do: their output is nobody's
    input.

    Attributes:
        source: The mask of the model that it came from.
    """

    source: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Padding:
        """The same memory; the mask remembers where it came from."""
        padding = mask.as_subclass(cls)
        padding.source = mask  # a mask that is boolean already keeps its identity
        return padding

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            made = _ROWS.get(func, func)(*args, **(kwargs or {}))
            if func in _KEEPS or func in _ROWS:
                made = made.as_subclass(cls)
                made.source = next(_paddings(args)).source
        return made


def keep_padding(module: nn.Module, argument: str, undo: Undo) -> None:
    """Hand a module its padding mask as a ``Padding``.

    A compiled module is left to build what it builds.
    """
    enter = KeepPadding(argument)
    undo.do(
        lambda: module.register_forward_pre_hook(enter, with_kwargs=True),
        lambda: drop_hooks(module, enter),
    )


@dataclass(eq=False)
class KeepPadding:
    """A hook before the forward call of a module, which is told of padding in this argument."""

    argument: str

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get(self.argument)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or torch.compiler.is_compiling():
            return None
        return args, kwargs | {self.argument: Padding.of(mask.bool())}


def source_of(mask: Any) -> Any:
    """The mask a model was given, from what it made of it."""
    return mask.source if isinstance(mask, Padding) else mask


def _repeat(mask: Tensor, *sizes: int) -> Tensor:
    """``repeat`` of dimensions of size 1, without memory."""
    if any(size != 1 and n != 1 for size, n in zip(sizes, mask.shape, strict=True)):
        return mask.repeat(*sizes)
    return mask.expand(*(max(size, n) for size, n in zip(sizes, mask.shape, strict=True)))


def _and(mask: Tensor, other: Tensor) -> Tensor:
    """Of a mask that is the same for all queries and its transpose, the mask."""
    by_query = (
        mask.ndim == 4 and mask.shape == other.shape and 0 in (mask.stride(2), other.stride(2))
    )
    if not by_query:
        return mask & other
    return mask if mask.stride(2) == 0 else other


_ROWS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    Tensor.repeat: _repeat,
    Tensor.__and__: _and,
}


def _paddings(args: Any) -> Any:
    for arg in args:
        if isinstance(arg, Padding):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _paddings(arg)
