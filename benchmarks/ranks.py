"""The processes of torchrun, one a device: what they tell each other besides the model's data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vidsparse.errors import VidsparseError, shorten

PATIENCE = timedelta(seconds=120)  # for another process; what waits longer ends this one
Made = TypeVar("Made")


class RefusedError(Exception):
    """Some process could not do it, so that none goes on with it."""


@dataclass(frozen=True)
class Ranks:
    """Every process calls the methods in the same order.

    Attributes:
        number: Of this process, from 0.
        devices: How many there are.
        group: On which they talk, of its own and on the host: a process that failed must not wait
            where another one still sends parts of the model.
    """

    number: int = 0
    devices: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> Ranks:
        """The processes that torchrun started; this one alone where it did not."""
        if "LOCAL_RANK" not in os.environ:
            return cls()
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "cpu:gloo", timeout=PATIENCE)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), group)

    def leave(self) -> None:
        if self.group is not None:
            dist.destroy_process_group()

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in their order; also a place where they wait for one another."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.devices
        dist.all_gather_object(found, value, group=self.group)
        return found

    def attempt(self, work: Callable[[], Made]) -> Made:
        """Do something on every device.

        Args:
            work: May send parts of the model; must not call a method of this class.

        Raises:
            RefusedError: With the sentence of the first process that could not; in all of them.
        """
        made, sentence = None, None
        try:
            made = work()
        except (RuntimeError, ValueError, AssertionError, VidsparseError) as error:
            sentence = shorten(f"{type(error).__name__}: {error}", 500)
            print(f"device {self.number}: {sentence}", file=sys.stderr, flush=True)
        refused = [each for each in self.gathered(sentence) if each is not None]
        if refused:
            raise RefusedError(refused[0])
        return made  # type: ignore[return-value]  # of work, which raised nothing
