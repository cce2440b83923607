"""Turns a policy and a noise level into block plans, and remembers what the next step can use."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.budgets import Budgets
from vidsparse.kernels.permute import permute_tokens
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.choice import CHOICE, choose, per_head
from vidsparse.policies.compensation import Compensation, Level, coarse_plan, with_centroids
from vidsparse.policies.estimator import Estimate, Inputs
from vidsparse.policies.orders import Arranged
from vidsparse.policies.policy import Alternative, Policy, lists_of_mask, plan_of_lists
from vidsparse.policies.selectors import Selector
from vidsparse.policies.tolerance import plan_within, still_within
from vidsparse.state import LayerState, Memory, Verdict, pack_bits, unpack_bits

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
        kv_order: The order of keys and values, likewise.
        levels: Blocks that take part through means of a few tokens.
    """

    inputs: Inputs
    plan: BlockPlan
    q_order: Tensor | None = None
    kv_order: Tensor | None = None
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

    def start_run(self) -> None:
        """Forget what belongs to the run before; static plans stay."""
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
        if self.policy.static:
            plan = self._static_plan(inputs, self._density(inputs, way))
            return self._finish(self.policy.order.arrange(inputs), plan)
        again = self._remembered(inputs, way)
        if again is not None:
            return self._finish(*again)
        arranged, plan = self._made(inputs, way)
        if inputs.remember and self.policy.can_reuse_plans:
            inputs.common.park(PLAN, pack_bits(plan.to_block_mask()), inputs.step)
            inputs.common.way, inputs.common.verdict = way, None
        work = self._finish(arranged, plan)
        if self.policy.compensation is Compensation.LEVELS:
            work = dataclasses.replace(work, levels=self._levels(work, way))
        return work

    def again(self, work: Work, q: Tensor, k: Tensor, v: Tensor) -> Work:
        """The orders and the plan of an earlier call, for q, k and v in raster order."""
        q = q if work.q_order is None else permute_tokens(q, work.q_order)
        k, v = (x if work.kv_order is None else permute_tokens(x, work.kv_order) for x in (k, v))
        inputs = dataclasses.replace(work.inputs, q=q, k=k, v=v)
        plan = dataclasses.replace(work.plan, pooled=None)  # means are made anew, to be learned
        made = self._finish(Arranged(inputs, work.q_order, work.kv_order), plan)
        return dataclasses.replace(made, levels=work.levels)

    def static_plan(self, inputs: Inputs, way: float) -> BlockPlan:
        """The plan of a policy that looks at no data, from the geometry alone."""
        assert self.policy.static
        return self._static_plan(inputs, self._density(inputs, way))

    def _density(self, inputs: Inputs, way: float) -> float | Tensor | None:
        """Share of the pairs to keep on the way; None leaves it to p or the policy's own mask.

        Of each head, ``(1, heads)``, if a budget says so.
        """
        if self._budgets is not None:
            named = self._budgets.of(inputs.expert, inputs.layer, inputs.all_heads)
            if named is not None:
                own = inputs.share.own if inputs.share and len(named) > 1 else range(len(named))
                on_the_way = [1.0 - way * (1.0 - named[head]) for head in own]
                if len(named) == 1:
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

    def _made(self, inputs: Inputs, way: float) -> tuple[Arranged, BlockPlan]:
        """An order and a plan, from the data of this call."""
        policy = self.policy
        if policy.selector is Selector.TOLERANCE:
            assert policy.tolerance is not None
            return plan_within(policy, inputs, policy.tolerance * way, self._static_estimate)
        density = self._density(inputs, way)
        if policy.alternatives:
            arranged, keep = choose(policy, inputs, density, self._static_estimate)
            return arranged, plan_of_lists(lists_of_mask(keep), arranged.inputs.blocks)
        arranged = policy.order.arrange(inputs)
        p = None if policy.p is None else 1.0 - way * (1.0 - policy.p)
        estimate = policy.estimator.estimate(arranged.inputs)
        return arranged, policy.plan(estimate, arranged.inputs, density=density, p=p)

    def _remembered(self, inputs: Inputs, way: float) -> tuple[Arranged, BlockPlan] | None:
        """The order and plan of an earlier call of this layer, if young and good enough."""
        common, step = inputs.common, inputs.step
        age, verdict = common.age(PLAN, step), common.verdict
        if age is None or not 0 <= age < self._replan or common.way != way:
            return None
        if verdict is not None and verdict[0] != step and not verdict[1]:
            return None
        packed, arranged = common.get(PLAN), self._arranged_again(inputs)
        assert packed is not None
        keep = self._fitted(packed, arranged.inputs)
        plan = plan_of_lists(lists_of_mask(keep), arranged.inputs.blocks)
        tolerance = self.policy.tolerance
        if tolerance is not None and age > 0 and (verdict is None or verdict[0] != step):
            within = still_within(self.policy, inputs, arranged, plan, tolerance * way)
            common.verdict = step, Verdict(within)
        return arranged, plan

    def _fitted(self, packed: Tensor, inputs: Inputs) -> Tensor:
        """The remembered mask, for a call whose text after the video may be of another length.

        What it says of the video stays; text is kept whole, as always.
        """
        rows, columns = inputs.blocks.rows, inputs.blocks.columns
        if packed.shape[-2] == rows:
            return unpack_bits(packed, columns)
        keep = unpack_bits(packed, 8 * packed.shape[-1])
        keep = F.pad(keep, (0, columns - keep.shape[-1], 0, rows - keep.shape[-2]))
        return keep | self.policy.always(inputs)

    def _arranged_again(self, inputs: Inputs) -> Arranged:
        """In the order of the plan that is remembered."""
        choice = inputs.common.get(CHOICE)
        if choice is not None:
            return per_head(inputs, self.policy.candidates, choice)
        return self.policy.order.again(inputs)

    def nbytes(self) -> int:
        """Bytes remembered on the device."""
        return self._plans.nbytes() + self._estimates.nbytes() + self._states.nbytes()

    def host_nbytes(self) -> int:
        """Bytes remembered in host memory."""
        return self._states.nbytes(LayerState.host_nbytes)

    def _finish(self, arranged: Arranged, plan: BlockPlan) -> Work:
        if self.policy.compensation is Compensation.CENTROID:
            plan = with_centroids(plan, arranged.inputs)
        return Work(
            inputs=arranged.inputs,
            plan=plan,
            q_order=arranged.q_order,
            kv_order=arranged.kv_order,
        )

    def _static_estimate(self, candidate: Alternative, inputs: Inputs) -> Estimate:
        key = (inputs.blocks.grid, str(inputs.blocks.device), candidate)
        return self._estimates.get(key, lambda: candidate.estimator.estimate(inputs))

    def _static_plan(self, inputs: Inputs, density: float | Tensor | None) -> BlockPlan:
        policy, blocks = self.policy, inputs.blocks
        layer = inputs.layer if policy.estimator.per_layer or policy.order.per_layer else 0
        own = inputs.share.own if inputs.share else ()
        geometry = (blocks.grid, str(blocks.device), layer, inputs.heads, own)
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
            if density is None and made.density >= 1.0:
                self.notes.setdefault(
                    f"the mask keeps every block of the grid {blocks.grid}: nothing is saved"
                )
            return made

        return self._plans.get((geometry, each), plan)
