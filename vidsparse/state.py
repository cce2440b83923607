"""What is remembered between calls: bounded, and counted in bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.head_sharing import HeadShare

Made = TypeVar("Made")


class LayerState:
    """What one layer remembers of earlier steps, for one geometry and one or all guidance branches.

    Tensors by name; those that belong to a batch have it as their first dimension, so guidance
    branches that run as one batch stay apart.

    Attributes:
        tensors: Those on the device, by name.
        on_host: Those that wait in host memory, by name.
        verdict: On the plan that was used again at the latest step, and that step.
        way: How far the schedule had come when the plan was made.
        grid: The tokens that it was made of: branches' texts may differ in length.
        share: Which heads this is of, where devices share them.
        maker: The layer that made the plan, where neighbours share one, and its number of heads.
    """

    def __init__(self) -> None:
        self.share: HeadShare | None = None
        self.verdict: tuple[int, Verdict] | None = None
        self.way: float | None = None
        self.maker: tuple[int, int] | None = None
        self.grid: TokenGrid | None = None
        self.tensors: dict[str, Tensor] = {}
        self.on_host: dict[str, HostCopy] = {}
        self.steps: dict[str, int] = {}
        self._bytes, self._host_bytes = 0, 0  # counted as they come: asked for at every call

    def get(self, name: str) -> Tensor | None:
        """A tensor on the device, or None if there is none."""
        return self.on_host[name].back() if name in self.on_host else self.tensors.get(name)

    def put(self, name: str, value: Tensor, step: int) -> None:
        """Remember a tensor and the step it is of."""
        before = self.tensors.get(name)
        self._bytes += value.nbytes - (0 if before is None else before.nbytes)
        self.tensors[name], self.steps[name] = value, step

    def park(self, name: str, value: Tensor, step: int) -> None:
        """Remember a tensor in host memory: one that is large, and read once in a while."""
        copy = self.on_host.setdefault(name, HostCopy())
        before = copy.nbytes
        copy.put(value)
        self._host_bytes += copy.nbytes - before
        self.steps[name] = step

    def age(self, name: str, step: int) -> int | None:
        """How many steps ago a tensor was made; None if there is none."""
        return step - self.steps[name] if name in self.steps else None

    def follow(self, share: HeadShare | None) -> None:
        """Go with the heads where they have moved to another device."""
        before, self.share = self.share, share
        if before is None or share is None or before.order == share.order:
            return
        for name, tensor in self.tensors.items():
            self.tensors[name] = share.mine(before.everyone(tensor))
        for copy in self.on_host.values():
            copy.put(share.mine(before.everyone(copy.back())))
        self._bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self._host_bytes = sum(copy.nbytes for copy in self.on_host.values())

    def nbytes(self) -> int:
        """Bytes held on the device."""
        return self._bytes

    def host_nbytes(self) -> int:
        """Bytes held in host memory."""
        return self._host_bytes


class Kept:
    """What follows from a geometry alone, by name: made once, then read by every call.

    Nobody may change what it holds. What is made while a CUDA graph is captured is not kept: it is
    not there before the graph runs.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._bytes = 0

    def get(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """The tensors of a name, made now if they are not there.

        Args:
            name: Says all that they depend on beside the geometry.
            make: Gives a tensor, a tuple of tensors or a plan.
        """
        if name in self._made:
            return self._made[name]
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return make()
        with torch.inference_mode(False), torch.no_grad():  # it outlives the mode it is made in
            self._made[name] = made = make()
        self._bytes += _bytes_of(made)
        return made

    def nbytes(self) -> int:
        """Bytes held on the device."""
        return self._bytes


def _bytes_of(made: Any) -> int:
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(map(_bytes_of, made)) if isinstance(made, tuple) else made.nbytes()


class HostCopy:
    """A tensor of the device that waits in pinned host memory.

    The copies there and back stand in the device's queue, so nothing waits for them.
    """

    def __init__(self) -> None:
        self._x: Tensor | None = None

    def put(self, x: Tensor) -> None:
        """Copy it away, into the place of the one before where it fits."""
        self._device = x.device
        if not x.is_cuda:
            self._x = x
            return
        if self._x is None or (self._x.shape, self._x.dtype) != (x.shape, x.dtype):
            self._x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._x.copy_(x, non_blocking=True)

    def back(self) -> Tensor:
        """A copy on the device."""
        assert self._x is not None
        return self._x.to(self._device, non_blocking=True)

    @property
    def nbytes(self) -> int:
        """Bytes held in host memory."""
        return 0 if self._x is None else self._x.nbytes


class PendingValue:
    """A small tensor of the device, on its way to the host.

    Whoever asks for it a step later does not wait.
    """

    def __init__(self, x: Tensor) -> None:
        self._x, self._event = x, None
        if x.is_cuda:
            self._x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._x.copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))

    def there(self) -> Tensor:
        """The tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._x


class Verdict(PendingValue):
    """A yes or no, boolean ``()``."""

    def __bool__(self) -> bool:
        return bool(self.there())


class Memory:
    """Keeps the values used last, forgets the others.

    Args:
        capacity: How many values are kept.
        nbytes: Size of a value in bytes, on its device.
    """

    def __init__(self, capacity: int, nbytes: Callable[[Any], int]) -> None:
        self._capacity = capacity
        self._nbytes = nbytes
        self._values: dict[Hashable, Any] = {}  # those used last come last

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of ``key``, made now if it is not remembered."""
        if key not in self._values:  # it outlives the mode that it is made in
            with torch.inference_mode(False), torch.no_grad():
                value = make()
        else:
            value = self._values.pop(key)
        self._values[key] = value
        while len(self._values) > self._capacity:
            del self._values[next(iter(self._values))]
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()

    def nbytes(self, size: Callable[[Any], int] | None = None) -> int:
        """Bytes held now, by this size of a value if it is given."""
        return sum(map(size or self._nbytes, self._values.values()))

    def __len__(self) -> int:
        return len(self._values)
