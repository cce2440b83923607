"""Turns a policy and a noise level into block plans, and remembers what the next step can use."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.budgets import Budgets
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.choice import choose
from vidsparse.policies.compensation import Compensation, Level, coarse_plan, with_centroids
from vidsparse.policies.estimator import Estimate, Inputs
from vidsparse.policies.policy import Alternative, Policy, lists_of_mask, plan_of_lists
from vidsparse.policies.selectors import Selector
from vidsparse.policies.tolerance import plan_within
from vidsparse.state import LayerState, Memory, pack_bits, unpack_bits

REMEMBERED = 16  # static plans: a ramp of 16 steps at one size, or several sizes without a ramp
LAYERS = 4096  # of all experts, branches and geometries: none is forgotten within a generation
PLAN = "plan"


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """An attention call, ready to run.

    Attributes:
        inputs: q, k and v in the order of the plan.
        plan: What to compute, in that order.
        q_order: How to put the output back, int32 ``(B|1, H|1, seq)``; None if nothing moved.
        levels: Blocks that take part through means of a few tokens.
    """

    inputs: Inputs
    plan: BlockPlan
    q_order: Tensor | None = None
    levels: tuple[Level, ...] = ()

    def head_density(self) -> Tensor:
        """Density of each head, ``(B|1, H|1)``; a pair with a mean counts as one pair."""
        density = self.plan.head_density()
        for tokens, coarse in self.levels:
            density = density + coarse.head_density() / tokens
        return density


class Planner:
    """Makes the plans of one policy.

    Args:
        policy: What to compute at full sparsity.
        replan: Steps until a layer's plan is made anew; in between it is used again.
        budgets: Densities of layers and heads, instead of the policy's own.

    Attributes:
        notes: Sentences the user should read, such as a density that could not be met.
    """

    def __init__(self, policy: Policy, replan: int = 1, budgets: Budgets | None = None) -> None:
        self.policy = policy
        self._budgets = budgets
        self._replan = replan
        self._plans = Memory(REMEMBERED, BlockPlan.nbytes)
        self._estimates = Memory(4, lambda estimate: estimate.scores.nbytes)
        self._densities = Memory(REMEMBERED, lambda density: 0)
        self._states = Memory(LAYERS, LayerState.nbytes)
        self.notes: dict[str, None] = {}

    def start_generation(self) -> None:
        """Forget what belongs to the generation before; static plans stay."""
        self._states.clear()

    def state(self, key: Hashable) -> LayerState:
        """What a layer remembers; the key names the layer, branch, expert and geometry."""
        return self._states.get(key, LayerState)

    def target(self, inputs: Inputs) -> float | None:
        """Density at full sparsity: the policy's, or that of its static mask; None if unknown."""
        if self.policy.density is not None or not self.policy.static:
            return self.policy.density
        return self._densities.get(
            inputs.blocks.grid, lambda: self._static_plan(inputs, None).density
        )

    def work(self, inputs: Inputs, way: float) -> Work:
        """Order a call and plan it.

        Args:
            inputs: q, k and v in raster order.
            way: How far the schedule has come from dense, in (0, 1].
        """
        policy = self.policy
        if policy.selector is Selector.TOLERANCE:
            return self._within_tolerance(inputs, way)
        density = self._density(inputs, way)
        if policy.alternatives:
            return self._chosen(inputs, density)
        arranged = policy.order.arrange(inputs)
        if policy.static:
            plan = self._static_plan(inputs, density)
        else:
            plan = self._remembered(arranged.inputs)
            if plan is None:
                plan = self._made(arranged.inputs, density, way)
        work = self._finish(arranged.inputs, plan, arranged.q_order)
        if policy.compensation is Compensation.LEVELS:
            work = dataclasses.replace(work, levels=self._levels(work, way))
        return work

    def static_plan(self, inputs: Inputs, way: float) -> BlockPlan:
        """The plan of a policy that looks at no data, from the geometry alone."""
        assert self.policy.static
        return self._static_plan(inputs, self._density(inputs, way))

    def _density(self, inputs: Inputs, way: float) -> float | Tensor | None:
        """Share of the pairs to keep on the way; None leaves it to p or the policy's own mask.

        Of each head, ``(1, heads)``, if a budget says so.
        """
        if self._budgets is not None:
            own = self._budgets.of(inputs.expert, inputs.layer, inputs.heads)
            if own is not None:
                on_the_way = [1.0 - way * (1.0 - density) for density in own]
                if len(own) == 1:
                    return on_the_way[0]
                return torch.tensor([on_the_way]).to(inputs.blocks.device, non_blocking=True)
        target = self.target(inputs)
        if target is None or way >= 1:
            return self.policy.density
        return 1.0 - way * (1.0 - target)

    def _levels(self, work: Work, way: float) -> tuple[Level, ...]:
        """The blocks that come after those of the plan, by the tokens of their means."""
        estimate = self.policy.estimator.estimate(work.inputs)
        exact = work.plan.to_block_mask()
        share = self._density(work.inputs, way)
        levels = []
        assert isinstance(share, float)
        for tokens, more in self.policy.levels.items():
            share = min(1.0, share + way * more)
            upto = self.policy.plan(estimate, work.inputs, density=share).to_block_mask()
            levels.append(Level(tokens, coarse_plan(upto & ~exact, work.plan, tokens)))
            exact = exact | upto
        return tuple(levels)

    def _made(self, inputs: Inputs, density: float | Tensor | None, way: float) -> BlockPlan:
        p = None if self.policy.p is None else 1.0 - way * (1.0 - self.policy.p)
        estimate = self.policy.estimator.estimate(inputs)
        plan = self.policy.plan(estimate, inputs, density=density, p=p)
        if self._replan > 1:
            inputs.state.put(PLAN, pack_bits(plan.to_block_mask()), inputs.step)
        return plan

    def nbytes(self) -> int:
        """Bytes remembered."""
        return self._plans.nbytes() + self._estimates.nbytes() + self._states.nbytes()

    def _finish(self, inputs: Inputs, plan: BlockPlan, q_order: Tensor | None) -> Work:
        if self.policy.compensation is Compensation.CENTROID:
            plan = with_centroids(plan, inputs)
        return Work(inputs=inputs, plan=plan, q_order=q_order)

    def _chosen(self, inputs: Inputs, density: float | Tensor | None) -> Work:
        """Each head in the order, and with the mask, that errs least on sampled rows."""
        arranged, keep = choose(self.policy, inputs, density, self._static_estimate)
        plan = plan_of_lists(lists_of_mask(keep), inputs.blocks)
        return self._finish(arranged.inputs, plan, arranged.q_order)

    def _within_tolerance(self, inputs: Inputs, way: float) -> Work:
        assert self.policy.tolerance is not None
        tolerance = self.policy.tolerance * way
        arranged, plan = plan_within(self.policy, inputs, tolerance, self._static_estimate)
        return self._finish(arranged.inputs, plan, arranged.q_order)

    def _remembered(self, inputs: Inputs) -> BlockPlan | None:
        """The plan of an earlier step, if it is young enough."""
        packed, age = inputs.state.get(PLAN), inputs.state.age(PLAN, inputs.step)
        if packed is None or age is None or not 0 <= age < self._replan:
            return None
        keep = unpack_bits(packed, inputs.blocks.number)
        return plan_of_lists(lists_of_mask(keep), inputs.blocks)

    def _static_estimate(self, candidate: Alternative, inputs: Inputs) -> Estimate:
        key = (inputs.blocks.grid, str(inputs.blocks.device), candidate)
        return self._estimates.get(key, lambda: candidate.estimator.estimate(inputs))

    def _static_plan(self, inputs: Inputs, density: float | Tensor | None) -> BlockPlan:
        policy, blocks = self.policy, inputs.blocks
        layer = inputs.layer if policy.estimator.per_layer or policy.order.per_layer else 0
        geometry = (blocks.grid, str(blocks.device), layer, inputs.heads)
        bare = dataclasses.replace(inputs, layer=layer, q=None, k=None, v=None)

        each = tuple(density.flatten().tolist()) if isinstance(density, Tensor) else density

        def estimate() -> Estimate:
            return policy.estimator.estimate(policy.order.arrange(bare).inputs)

        def plan() -> BlockPlan:
            arranged = policy.order.arrange(bare).inputs
            made = policy.plan(self._estimates.get(geometry, estimate), arranged, density=density)
            asked = policy.density  # on a ramp, other densities only pass by
            if asked is not None and each == asked and made.density > 1.05 * asked:
                self.notes.setdefault(
                    f"density {made.density:.2f} is the least that this mask allows on the grid "
                    f"{blocks.grid} with blocks of {blocks.block}; {asked:.2f} was asked for"
                )
            return made

        return self._plans.get((geometry, each), plan)
