"""What a preset would compute in a run, from its geometry alone: no weights, no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.random import Random
from vidsparse.policies.selectors import Threshold, TopK
from vidsparse.preset import Preset

MANY = 1000  # blocks in a row: that they are whole does not show in what a ramp asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would compute.

    Attributes:
        preset: The preset.
        grid: The tokens.
        token_density: Pairs of the mask at full sparsity over all pairs.
        block_density: The same, once the mask is made of whole blocks: what is computed.
        sigmas: Noise level of each step.
        step_density: Mean density over the layers at each step.
        notes: Sentences the user should read.
    """

    preset: Preset
    grid: TokenGrid
    token_density: float
    block_density: float
    sigmas: list[float]
    step_density: list[float]
    notes: list[str]

    @property
    def mean_density(self) -> float:
        return sum(self.step_density) / len(self.step_density)

    @property
    def dense_steps_share(self) -> float:
        return sum(density >= 1 for density in self.step_density) / len(self.step_density)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        block = self.preset.policy.block
        return {
            "preset": self.preset.name,
            "parameters": self.preset.parameters(),
            "grid": str(self.grid),
            "tokens": self.grid.tokens,
            "block": block,
            "blocks": -(-self.grid.tokens // block),
            "token_density": self.token_density,
            "block_density": self.block_density,
            "mean_density": self.mean_density,
            "dense_steps_share": self.dense_steps_share,
            "steps": len(self.sigmas),
            "sigmas": self.sigmas,
            "step_density": self.step_density,
            "notes": self.notes,
        }


def forecast(preset: Preset, grid: TokenGrid, sigmas: list[float], layers: int | None) -> Forecast:
    """Make the plans of a run from its geometry alone.

    Args:
        preset: What to compute, and when.
        grid: The tokens.
        sigmas: Noise level of each step.
        layers: How many self-attention layers there are; None leaves ``dense_layers`` out.
    """
    mask = _Mask(preset, grid)
    always_dense, notes = _always_dense(preset, grid, layers)
    schedule = preset.schedule
    block_density = mask.at(1.0)
    notes += mask.planner.notes  # of the mask; the ramp above it would only say the same again
    ways = [schedule.way(sigma, schedule.dense_layers) for sigma in sigmas]
    planned = [mask.at(way) for way in ways]
    policy = preset.policy
    besides = policy.compensation.pairs(
        ways,
        planned,
        replan=schedule.replan,
        means=policy.order.block_counts(grid, policy.block)[1] / grid.tokens,
    )
    steps = [sum(both) for both in zip(planned, besides, strict=True)]
    return Forecast(
        preset=preset,
        grid=grid,
        token_density=mask.token_density(block_density),
        block_density=block_density,
        sigmas=sigmas,
        step_density=[always_dense + (1 - always_dense) * density for density in steps],
        notes=notes,
    )


class _Mask:
    """The plans of a policy on a grid.

    Methods that look at the data keep as many blocks whatever they see, if they have a density:
    random scores stand in for theirs.
    """

    def __init__(self, preset: Preset, grid: TokenGrid) -> None:
        self.policy = policy = preset.policy
        if policy.density is None and not policy.static:
            raise BadInputError(
                f"how much preset {preset.name!r} computes depends on what it sees: give it a "
                "density, or run it"
            )
        if not policy.static:
            selector = TopK() if policy.selector.equal_rows else Threshold()
            policy = Policy(
                estimator=Random(), selector=selector, density=policy.density, block=policy.block
            )
        self.planner = Planner(policy)
        self._inputs = Inputs(blocks=Blocks(grid, policy.block, torch.device("cpu")))
        self._known = {0.0: 1.0}

    def at(self, way: float) -> float:
        """The density of the plan that is made so far from dense."""
        if 0 < way < 1 and self._inputs.blocks.number >= MANY:
            return 1 - way * (1 - self.at(1.0))
        if way not in self._known:
            self._known[way] = self.planner.static_plan(self._inputs, way).density
        return self._known[way]

    def token_density(self, block_density: float) -> float:
        """That of the rule itself, where there is one; else masks are made of whole blocks."""
        if self.policy.density is not None:
            return block_density
        blocks = self._inputs.blocks
        of_rule = self.policy.estimator.token_density(blocks.grid, blocks.block)
        return block_density if of_rule is None else of_rule


def _always_dense(preset: Preset, grid: TokenGrid, layers: int | None) -> tuple[float, list[str]]:
    """The share of the layers that never is sparse, and what to say of it."""
    if grid.tokens < preset.min_tokens:
        return 1.0, [
            f"{grid.tokens:,} tokens are too few to gain (min_tokens is {preset.min_tokens:,}): "
            "every step would run dense"
        ]
    dense = preset.schedule.dense_layers
    if dense and layers is None:
        return 0.0, [f"the {dense} dense layers are left out: a grid does not say of how many"]
    return (min(1.0, dense / layers) if layers else 0.0), []
