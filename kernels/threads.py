"""How many threads small work on a CPU takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL = 2**21  # numbers: what one thread goes through in the time of a few waits


@contextmanager
def one_thread(x: Tensor) -> Iterator[None]:
    """Work on few numbers of a CPU by one thread.

    Planning is dozens of operations that take a tenth of a millisecond each. Shared among threads,
    every one of them ends with a wait for the slowest; while other programs run, that is a time
    slice of theirs. Changes nothing on other devices, nor where ``x`` is large.

    Args:
        x: What is worked on.
    """
    before = torch.get_num_threads()
    if x.device.type != "cpu" or x.numel() > SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
