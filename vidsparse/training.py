"""Attention with gradients: each call plans for itself, and can run again for the backward pass.

A training step draws its noise level at random, so nothing that another step left is of use. Plans
are made without gradients and leave nothing to the backward pass; they are then run with q, k and v
that have them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.planner import Planner
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.work import Work
from vidsparse.preset import Preset
from vidsparse.state import LayerState


@dataclass(eq=False)
class Take:
    """What an attention call decided, for the time when it is recomputed.

    Attributes:
        decided: Whether the call has been made.
        work: Its orders and plan, without tokens; None where it was dense.
        way: How far the schedule had come from dense.
    """

    decided: bool = False
    work: Work | None = None
    way: float = 1.0


def wants_gradients(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def require_trainable(preset: Preset) -> None:
    """Refuse a preset that needs what earlier denoising steps left.

    Raises:
        BadInputError: When it does.
    """
    policy = preset.policy
    learned = policy.estimator.keeps_over_steps or policy.compensation.keeps_over_steps
    if learned is not None:
        raise BadInputError(
            f"preset {preset.name!r} keeps {learned} from one denoising step to the next, and "
            "training has no such steps: choose another preset, or call the model under "
            "torch.no_grad()"
        )


def work_alone(planner: Planner, inputs: Inputs, way: float, take: Take | None) -> Work:
    """Plan from one call alone, which is remembered nowhere but in its take.

    Args:
        planner: Of the policy.
        inputs: In raster order.
        way: How far the schedule has come from dense, in (0, 1].
        take: Told what was decided; None if nothing will ask.
    """
    q, k, v = inputs.qkv
    with torch.no_grad():
        alone = dataclasses.replace(
            inputs, q=q.detach(), k=k.detach(), v=v.detach(),
            state=LayerState(), shared=None, remember=False,
        )  # fmt: skip
        work = planner.work(alone, way)
    if take is not None:
        take.work, take.way = _without_tokens(work), way
    return planner.again(work, q, k, v) if wants_gradients(q, k, v) else work


def _without_tokens(work: Work) -> Work:
    inputs = dataclasses.replace(work.inputs, q=None, k=None, v=None)
    plan = dataclasses.replace(work.plan, pooled=None)
    return dataclasses.replace(work, inputs=inputs, plan=plan)
