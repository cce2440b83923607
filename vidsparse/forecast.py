"""What a preset would compute in a run, from its geometry alone: no weights, no GPU."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vidsparse.budgets import Densities
from vidsparse.dial import density_or_note
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.large_grids import LARGE, ROWS, asked_density, mask_density
from vidsparse.planner import Planner
from vidsparse.policies.block_size import WIDE
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Estimate, Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.random import Random
from vidsparse.policies.selectors import Threshold, TopK
from vidsparse.preset import Preset
from vidsparse.progress import Progress
from vidsparse.schedule import Schedule

MOST_TOKENS = 10_000_000
FIRST = "transformer"  # of a pipeline, by diffusers' name
DEVICE = "cuda"
MANY = 1000  # blocks in a row: that they are whole does not show in what a ramp asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would compute.

    Attributes:
        preset: The preset.
        grid: The tokens.
        block: Tokens in a block.
        token_density: Pairs of the mask at full sparsity over all pairs.
        block_density: The same, once the mask is made of whole blocks: what is computed.
        step_density: Mean density over the layers at each step.
        notes: Sentences the user should read.
    """

    preset: Preset
    grid: TokenGrid
    block: int
    token_density: float
    block_density: float
    step_density: list[float]
    notes: list[str]

    @property
    def mean_density(self) -> float:
        return sum(self.step_density) / len(self.step_density)

    @property
    def dense_steps_share(self) -> float:
        return sum(density == 1 for density in self.step_density) / len(self.step_density)

    def all_dense(self) -> Forecast:
        """The same run, were every call dense."""
        return dataclasses.replace(self, step_density=[1.0] * len(self.step_density))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        block = self.block
        return {
            "preset": self.preset.name,
            "parameters": self.preset.plain_parameters(),
            "grid": str(self.grid),
            "tokens": self.grid.tokens,
            "block": block,
            "blocks": -(-self.grid.tokens // block),
            "token_density": self.token_density,
            "block_density": self.block_density,
            "mean_density": self.mean_density,
            "asked_mean_density": self.preset.policy.mean_density,
            "dense_steps_share": self.dense_steps_share,
            "steps": len(self.step_density),
            "step_density": self.step_density,
            "notes": self.notes,
        }


def forecast(
    preset: Preset, grid: TokenGrid, steps: int, layers: int | None, head_dim: int = WIDE
) -> Forecast:
    """Make the plans of a run on a GPU from its geometry alone.

    Args:
        preset: What to compute, and when.
        grid: The tokens.
        steps: Denoising steps.
        layers: How many self-attention layers there are; None leaves ``dense_layers`` out.
        head_dim: Numbers of a head, by which blocks are chosen.

    Raises:
        BadInputError: For more than ``MOST_TOKENS``, a mean density that cannot be reached, when
            what is computed depends on the data, or on budgets of layers that are not there or not
            known.
    """
    if grid.tokens > MOST_TOKENS:
        raise BadInputError(f"at most {MOST_TOKENS:,} tokens can be planned, got {grid.tokens:,}")
    run = Progress.first(steps)
    mask = _Mask(preset, grid, run, layers, head_dim)
    always_dense, notes = _always_dense(preset, grid, layers)
    schedule = preset.schedule
    shares, about_budgets = _shares(schedule, layers)
    block_density = sum(share * mask.at(1.0, named) for named, share in shares.items())
    notes += [mask.note] if mask.note else []
    notes += mask.planner.notes  # of the mask; the ramp above it would only say the same again
    sparse = [0.0] * steps
    for named, share in shares.items():
        for step, density in enumerate(mask.steps(schedule.ways(run), named)):
            sparse[step] += share * density
    return Forecast(
        preset=preset,
        grid=grid,
        block=mask.block,
        token_density=mask.token_density(block_density),
        block_density=block_density,
        step_density=[always_dense + (1 - always_dense) * density for density in sparse],
        notes=[*notes, *about_budgets],
    )


def _shares(
    schedule: Schedule, layers: int | None
) -> tuple[dict[Densities | None, float], list[str]]:
    """Which share of the layers that are ever sparse has which densities, None for the policy's.

    And what to say of it.
    """
    budgets = schedule.budgets
    if budgets is None:
        return {None: 1.0}, []
    if layers is None:
        raise BadInputError(
            "what budgets leave to compute depends on how many layers there are, which is not "
            "known here: plan a model that says it"
        )
    others = budgets.experts - {FIRST}
    budgets.check(dict.fromkeys((FIRST, *others), (layers, None)))
    sparse = range(min(schedule.dense_layers, layers - 1), layers)
    counts = Counter(budgets.named(FIRST, layer) for layer in sparse)
    said = f"the budgets of {' and '.join(sorted(others))} are left out: this plans {FIRST}"
    shares = {named: count / len(sparse) for named, count in counts.items()}
    return shares, [said] if others else []


class _Mask:
    """The plans of a policy on a grid.

    Methods that look at the data keep as many blocks whatever they see, if they have a density:
    random scores stand in for theirs.
    """

    def __init__(
        self, preset: Preset, grid: TokenGrid, run: Progress, layers: int | None, head_dim: int
    ) -> None:
        policy = preset.policy
        density = policy.estimator.kept if policy.any_density is None else policy.density
        if policy.any_density is None and density is None and not policy.static:
            raise BadInputError(
                f"how much preset {preset.name!r} computes depends on what it sees: give it a "
                "density, or run it"
            )
        block = preset.block_on(DEVICE, grid.tokens, head_dim)
        self.note = None
        self._means = policy.key_means(grid, block)
        if policy.mean_density is not None:
            density = 1.0  # of what is too short: then all is dense, whatever was asked for
            if grid.tokens >= preset.least_tokens:
                density, self.note = density_or_note(
                    preset, run, layers=layers, means=self._means, besides=policy.besides(grid)
                )
        self._besides = 0.0 if policy.static else policy.besides(grid)
        if policy.static:
            policy = dataclasses.replace(policy, density=density, mean_density=None)
        else:
            selector = TopK() if policy.selector.equal_rows else Threshold()
            policy = Policy(estimator=Random(), selector=selector, density=density, block=block)
        self.policy, self.planner, self.block = policy, Planner(policy), block
        blocks = Blocks(grid, block, torch.device("cpu"))
        self._inputs = Inputs(blocks=blocks, density=density)
        self._whole = preset
        self._known: dict[tuple[float, float | None], float] = {}
        self._of_heads: dict[float, float] = {}

    def at(self, way: float, named: Densities | None = None) -> float:
        """The density of the plans of a layer that are made so far from dense.

        Args:
            way: How far from dense, in [0, 1].
            named: Densities of the heads, or one for the layer, instead of the policy's.
        """
        if named is None or len(named) == 1:
            return self._at(way, None if named is None else named[0])
        if 0 < way < 1 and self._inputs.blocks.number >= MANY:
            return 1 - way * (1 - self.at(1.0, named))
        return sum(self._of_head(1 - way * (1 - density)) for density in named) / len(named)

    def steps(self, ways: list[float], named: Densities | None) -> list[float]:
        """What a layer computes at each step, compensation and correction included."""
        policy = self._whole.policy
        planned = [self._with_besides(self.at(way, named)) for way in ways]
        besides = policy.pairs(
            ways,
            planned,
            replan=self._whole.schedule.replan,
            means=self._means,
        )
        return [sum(both) for both in zip(planned, besides, strict=True)]

    def _with_besides(self, density: float) -> float:
        """With what is kept beside the density, of which the plans here know nothing."""
        return density + (1 - density) * self._besides

    def _at(self, way: float, target: float | None) -> float:
        if way <= 0:
            return 1.0
        if way < 1 and self._inputs.blocks.number >= MANY:
            return 1 - way * (1 - self._at(1.0, target))
        key = (way, target)
        if key not in self._known:
            large = target is None and self._inputs.blocks.number > LARGE
            self._known[key] = (
                self._at_full()
                if large
                else self.planner.static_plan(self._inputs, way, target).density
            )
        return self._known[key]

    def _of_head(self, density: float) -> float:
        """The density of a head's plan; scores of data do not tie, so a budget is spent whole."""
        if not self.policy.static:
            return max(density, self._bought(1e-9))
        return self._bought(density)

    def _bought(self, density: float) -> float:
        if density not in self._of_heads:
            arranged, estimate = self._arranged
            asked = torch.full((1, 1), density)
            plan = self.planner.policy.plan(estimate, arranged, density=asked)
            self._of_heads[density] = plan.density
        return self._of_heads[density]

    @cached_property
    def _arranged(self) -> tuple[Inputs, Estimate]:
        policy = self.planner.policy
        arranged = policy.order.arrange(self._inputs).inputs
        return arranged, policy.estimator.estimate(arranged)

    def _at_full(self) -> float:
        """The density at full sparsity, without the plan."""
        policy, blocks = self.planner.policy, self._inputs.blocks
        if not policy.estimator.has_mask:
            return asked_density(policy, blocks)
        made, asked = mask_density(policy, self._inputs), policy.density
        least = "" if asked is None or made <= asked else f"; {asked:.2f} was asked for"
        self.planner.notes.setdefault(
            f"density {made:.2f} is that of {ROWS} of the {blocks.number:,} rows of the mask{least}"
        )
        return made

    def token_density(self, block_density: float) -> float:
        """That of the rule itself, where there is one; else masks are made of whole blocks."""
        if self.policy.density is not None:
            return block_density
        blocks = self._inputs.blocks
        of_rule = self.policy.estimator.token_density(blocks.grid, blocks.block)
        return block_density if of_rule is None else of_rule


def _always_dense(preset: Preset, grid: TokenGrid, layers: int | None) -> tuple[float, list[str]]:
    """The share of the layers that never is sparse, and what to say of it."""
    if why := preset.why_too_few(grid.tokens):
        return 1.0, [f"{why}: every step would run dense"]
    dense = preset.schedule.dense_layers
    if dense and layers is None:
        return 0.0, [f"the {dense} dense layers are left out: a grid does not say of how many"]
    return (min(1.0, dense / layers) if layers else 0.0), []
