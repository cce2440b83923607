"""The current GPU: Triton launches there and events are recorded there, wherever the tensors are.

Torch's own operators go by their tensors, so a pipeline on ``cuda:1`` runs while ``cuda:0`` is the
current GPU; what is ours has to make it current.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def current(device: torch.device | str) -> AbstractContextManager[object]:
    """A device as the current one for the time of a ``with`` block; nothing on a CPU."""
    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
