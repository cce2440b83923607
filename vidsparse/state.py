"""What is remembered between calls: bounded, and counted in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Memory:
    """Keeps the values used last, forgets the others.

    Args:
        capacity: How many values are kept.
        nbytes: Size of a value in bytes.
    """

    def __init__(self, capacity: int, nbytes: Callable[[Any], int]) -> None:
        self._capacity = capacity
        self._nbytes = nbytes
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of ``key``, made now if it is not remembered."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return self._values[key]

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(self._nbytes(value) for value in self._values.values())

    def __len__(self) -> int:
        return len(self._values)
