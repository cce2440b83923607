"""A hook of one module, which neither a copy of the module nor what is saved of it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Hook:
    """Calls a function for one module.

    A copy of the module, which keeps the hook, is not meant; what is saved of it does nothing.

    Args:
        module: That is hooked into.
        function: Is given what the module's hooks are, without the module.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._module, self._function = module, function

    @torch.compiler.disable()
    def __call__(self, module: nn.Module, *given: Any) -> Any:
        return self._function(*given) if module is self._module else None

    def __deepcopy__(self, memo: Any) -> Hook:
        return self

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*given: Any) -> None:
    """Stands in a saved transformer where a session had a hook."""
