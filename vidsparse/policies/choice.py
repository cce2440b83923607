"""Each head takes, of several orders and estimators, the one that errs least on sampled rows.

SVG (arXiv 2502.01776) chooses so between two orders at every step, PAROAttention (2506.16054) among
six, Sparse-vDiT (2506.03065) and RainFusion (2505.21036) among patterns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.policies.estimator import Estimate, Estimator, Inputs
from vidsparse.policies.orders import Arranged, Order, in_order
from vidsparse.policies.sampled import Samples

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

CHOICE = "choice"
COMPARED_AT = 0.25  # density at which candidates compete where the policy has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another order and estimator that a head may take.

    Attributes:
        order: Where tokens are put.
        estimator: Scores the blocks.
    """

    order: Order
    estimator: Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What heads may take in place of the policy's own order and estimator, and when they choose.

    Attributes:
        candidates: The other orders and estimators; each head takes what errs least.
        choose_every: Steps until heads choose anew; 0 chooses once in a generation.
        sampled_rows: Query rows that the error is measured on.
    """

    candidates: tuple[Alternative, ...]
    choose_every: int = 1
    sampled_rows: int = 64

    def __post_init__(self) -> None:
        if self.choose_every < 0:
            raise BadInputError(f"choose_every must be at least 0, got {self.choose_every}")
        check_sampled_rows(self.sampled_rows)

    def due(self, age: int | None) -> bool:
        """Whether to choose anew, so many steps after the last time."""
        return bool(self.choose_every) and age is not None and not 0 <= age < self.choose_every


def check_sampled_rows(number: int) -> None:
    """Raise BadInputError where an error cannot be measured on so many rows."""
    if number < 1:
        raise BadInputError(f"sampled_rows must be at least 1, got {number}")


StaticEstimate = Callable[[Alternative, Inputs], Estimate]


def choose(
    policy: Policy,
    inputs: Inputs,
    density: float | Tensor | None,
    way: float,
    static: StaticEstimate,
) -> tuple[Arranged, Tensor]:
    """Choose for each head.

    Args:
        policy: With alternatives, which all have static orders.
        inputs: In raster order.
        density: Of the mask that is made; the choice itself is made at the policy's own.
        way: How far the schedule has come from dense, in (0, 1].
        static: Remembers estimates that need no data.

    Returns:
        The call, each head in its own order, and what it keeps there, boolean
        ``(batch, heads, M, N)``.
    """
    choice = choice_of(policy, inputs, inputs.density or COMPARED_AT, static)
    arranged = per_head(inputs, policy.candidates, choice)
    if len({candidate.estimator for candidate in policy.candidates}) == 1:
        mask = _mask(policy, policy.candidates[0], arranged.inputs, density, way, static)
        return arranged, mask
    masks = [
        _mask(policy, each, each.order.arrange(inputs).inputs, density, way, static)
        for each in policy.candidates
    ]
    every = torch.stack([mask.expand(*choice.shape, -1, -1) for mask in masks])
    index = choice.long()[None, :, :, None, None].expand(1, *every.shape[1:])
    return arranged, every.gather(0, index)[0]


def choice_of(
    policy: Policy,
    inputs: Inputs,
    density: float,
    static: StaticEstimate,
    samples: Samples | None = None,
) -> Tensor:
    """The candidate of each head, int8 ``(batch, heads)``; made anew when it is due.

    Args:
        policy: With alternatives.
        inputs: In raster order.
        density: At which candidates are compared.
        static: Remembers estimates that need no data.
        samples: To compare them on; drawn if None.
    """
    alternatives = policy.alternatives
    assert alternatives is not None
    choice = inputs.common.get(CHOICE)
    if choice is not None and not alternatives.due(inputs.common.age(CHOICE, inputs.step)):
        return choice
    samples = Samples.draw(inputs, alternatives.sampled_rows) if samples is None else samples
    errors = []
    for candidate in policy.candidates:
        arranged = candidate.order.arrange(inputs)
        mask = _mask(policy, candidate, arranged.inputs, density, 1.0, static)
        errors.append(samples.under(arranged, centroids=False).error(mask))
    choice = torch.stack(errors).argmin(dim=0).to(torch.int8)
    inputs.common.put(CHOICE, choice, inputs.step)
    return choice


def per_head(inputs: Inputs, candidates: tuple[Alternative, ...], choice: Tensor) -> Arranged:
    """Every head in the order it chose."""
    orders = [_positions(candidate.order, inputs) for candidate in candidates]
    if all(order is None for order in orders):
        return Arranged(inputs)
    raster = torch.arange(inputs.blocks.grid.tokens, device=choice.device, dtype=torch.int32)
    stacked = torch.stack([raster if order is None else order[0, 0] for order in orders])
    return in_order(inputs, stacked[choice.long()])


def _mask(
    policy: Policy,
    candidate: Alternative,
    inputs: Inputs,
    density: float | Tensor | None,
    way: float,
    static: StaticEstimate,
) -> Tensor:
    if candidate.estimator.needs_data:
        estimate = candidate.estimator.estimate(inputs)
    else:
        estimate = static(candidate, inputs)
    measure = candidate.estimator.measure
    return policy.plan(estimate, inputs, density=density, way=way, measure=measure).to_block_mask()


def _positions(order: Order, inputs: Inputs) -> Tensor | None:
    bare = dataclasses.replace(inputs, q=None, k=None, v=None)
    return order.arrange(bare).q_order
