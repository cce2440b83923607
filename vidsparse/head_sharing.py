"""The heads of one device, where several devices share those of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadShare:
    """Which heads stand on which device, and how to see those of the others.

    Every device has to make the same calls of ``everyone``, in the same order.

    Attributes:
        order: The heads of all devices, device by device, equally many each. A head that comes
            again only fills a place.
        devices: How many devices there are.
        rank: Which of them this is, from 0.
        exchange: Stacks the tensors of all devices, ``(...)`` to ``(devices, ...)``.
    """

    order: tuple[int, ...]
    devices: int
    rank: int
    exchange: Callable[[Tensor], Tensor]

    @property
    def number(self) -> int:
        """Heads of the layer."""
        return max(self.order) + 1

    @property
    def own(self) -> tuple[int, ...]:
        """Heads of this device, in the order in which they stand here."""
        each = len(self.order) // self.devices
        return self.order[self.rank * each : (self.rank + 1) * each]

    def everyone(self, x: Tensor) -> Tensor:
        """From ``(batch, own heads, ...)`` to ``(batch, heads, ...)``, in the model's order.

        What all heads have in common, ``(batch, 1, ...)``, stays so.
        """
        if x.shape[1] != len(self.own):
            return x
        every = self.exchange(x.contiguous()).transpose(0, 1).flatten(1, 2)
        return pick(every, [self.order.index(head) for head in range(self.number)])

    def mine(self, x: Tensor) -> Tensor:
        """From ``(batch, heads, ...)`` to ``(batch, own heads, ...)``."""
        return x if x.shape[1] == 1 else pick(x, self.own)

    def imbalance(self, density: Tensor) -> Tensor:
        """Work of the busiest device over the mean.

        Args:
            density: Of all heads, ``(heads,)``, or ``(1,)`` for all of them.
        """
        dealt = pick(density.expand(self.number), self.order, dim=0)
        loads = dealt.view(self.devices, -1).sum(dim=1)
        return loads.max() / loads.mean()


def same_work(density: list[float], devices: int) -> tuple[int, ...]:
    """Deal out heads, equally many to each device, so that the devices have about as much to do.

    The densest head that is left goes to the device with the least work that has a place left.
    Every device deals out the same, given the same densities.

    Returns:
        The heads of all devices, device by device, in ascending order on each.

    Example:
        >>> same_work([0.9, 0.8, 0.1, 0.2], 2)
        (0, 2, 1, 3)
    """
    places = len(density) // devices
    dealt: list[list[int]] = [[] for _ in range(devices)]
    work = [0.0] * devices
    for head in sorted(range(len(density)), key=lambda head: (-density[head], head)):
        free = [device for device in range(devices) if len(dealt[device]) < places]
        least = min(free, key=lambda device: (work[device], device))
        dealt[least].append(head)
        work[least] += density[head]
    return tuple(head for heads in dealt for head in sorted(heads))


def pick(x: Tensor, heads: Sequence[int], dim: int = 1) -> Tensor:
    """Some heads of a tensor, without a wait for its device."""
    return x.index_select(dim, torch.tensor(heads).to(x.device, non_blocking=True))


def own_of(share: HeadShare | None, x: Tensor) -> Tensor:
    """The own heads of ``(batch, heads, ...)``; all without a share."""
    return x if share is None else share.mine(x)


def all_of(share: HeadShare | None, x: Tensor) -> Tensor:
    """All heads from the own ones, ``(batch, own heads, ...)``; the own ones without a share."""
    return x if share is None else share.everyone(x)
