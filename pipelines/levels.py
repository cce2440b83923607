"""The noise levels that a scheduler is set to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

WHOLE = 0.02  # of the way: schedulers begin a little below pure noise


def noise_levels(scheduler: Any) -> list[float]:
    """The noise levels that a scheduler is set to, in [0, 1]; none if it tells of none."""
    config = getattr(scheduler, "config", {})
    if _is_flow(scheduler):
        sigmas = torch.as_tensor(scheduler.sigmas).tolist()
        return [1 - sigma for sigma in sigmas] if config.get("invert_sigmas") else sigmas
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None:
        return []
    full = config.get("num_train_timesteps", 1000)
    return [t / full for t in torch.as_tensor(timesteps).tolist()]


def steps_listed(scheduler: Any) -> int:
    """How many steps a scheduler is set to; 0 before it is set to any."""
    is_set = getattr(scheduler, "num_inference_steps", None) is not None
    return len(scheduler.timesteps) if is_set else 0


def calls_a_step(scheduler: Any) -> int:
    """How often a step calls the transformer; the last one does once.

    Heun's schedulers list each noise level but the first twice. Pipelines of diffusers count their
    steps by this ``order`` too.

    Args:
        scheduler: None if there is none.
    """
    return getattr(scheduler, "order", 1)


def share_behind(scheduler: Any, levels: Sequence[float]) -> float:
    """The share of the whole way from pure noise that is behind the first of some noise levels.

    A second stage lists levels of its own, from one on the way. Lists of diffusion's timesteps are
    always of the whole way, wherever they begin.

    Args:
        scheduler: That lists them; None if there is none.
        levels: The noise levels, falling.
    """
    config = getattr(scheduler, "config", {})
    if not levels or not _is_flow(scheduler):
        return 0.0
    shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
    shift = config.get("flow_shift", 1.0) if config.get("use_flow_sigmas") else shift
    first = levels[0]
    behind = 1 - first / (shift - (shift - 1) * first)
    return behind if behind > WHOLE else 0.0


def _is_flow(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    return bool(config.get("use_flow_sigmas")) or "FlowMatch" in type(scheduler).__name__
