"""A method of one object, watched by whoever put it there."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any


class Watched:
    """Calls a method and shows what it made; stands on the object in the place of the method.

    What a copy of the object then has is the copy's own method, unwatched: pipelines step copies
    of their scheduler, LTX-2 for its audio and SkyReels-V2 for each frame.

    Args:
        method: Of the object.
        see: Is shown each result.
    """

    def __init__(self, method: Callable[..., Any], see: Callable[[Any], None]) -> None:
        functools.update_wrapper(self, method)  # pipelines ask for the signature
        self._method, self._see = method, see

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = self._method(*args, **kwargs)
        self._see(made)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self._method, memo)
