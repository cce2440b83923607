"""The noise levels that a scheduler is set to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def noise_levels(scheduler: Any) -> list[float]:
    """The noise levels that a scheduler is set to, in [0, 1]; none if it tells of none."""
    config = getattr(scheduler, "config", {})
    if config.get("use_flow_sigmas") or "FlowMatch" in type(scheduler).__name__:
        sigmas = torch.as_tensor(scheduler.sigmas).tolist()
        return [1 - sigma for sigma in sigmas] if config.get("invert_sigmas") else sigmas
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None:
        return []
    full = config.get("num_train_timesteps", 1000)
    return [t / full for t in torch.as_tensor(timesteps).tolist()]


def level_after(sigma: float, levels: Sequence[float]) -> float | None:
    """The next lower level after the one that is nearest to ``sigma``, None after the last.

    Nearest, since pipelines round the timestep that sigma was read from.

    Example:
        >>> level_after(0.8984, [1.0, 0.9, 0.75, 0.501])
        0.75
    """
    falling = sorted(set(levels), reverse=True)
    if not falling:
        return None
    here = min(range(len(falling)), key=lambda i: abs(falling[i] - sigma))
    return falling[here + 1] if here + 1 < len(falling) else None
