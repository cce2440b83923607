"""Changes that are taken back: each is known how to undo before it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Undo:
    """A stack of what takes changes back.

    Each entry may run when its change was not made, was made half, or was taken back already, so
    that Ctrl-C at any moment leaves nothing behind that ``run`` cannot find.
    """

    def __init__(self) -> None:
        self._entries: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def do(self, change: Callable[[], object], undo: Callable[[], object]) -> None:
        """Make a change that can be taken back."""
        self._entries.append(undo)
        change()

    def run(self) -> None:
        """Take all back, the last change first; an interruption waits until that is done."""
        interruption: BaseException | None = None
        failure: Exception | None = None
        while self._entries:
            try:
                self._entries[-1]()
                self._entries.pop()
            except Exception as error:
                failure = failure or error
                self._entries.pop()
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption
        if failure is not None:
            raise failure


def drop_hooks(module: nn.Module, *hooks: Callable[..., Any]) -> None:
    """Remove hooks from a module, those that are there."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        registered = vars(module)[kind]
        for number, hook in list(registered.items()):
            if any(hook is each for each in hooks):
                for extra in (f"{kind}_with_kwargs", f"{kind}_always_called"):
                    vars(module).get(extra, {}).pop(number, None)
                registered.pop(number, None)  # last: an interruption then finds it again
