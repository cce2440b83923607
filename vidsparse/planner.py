"""Turns a policy and a noise level into block plans, and remembers what the next step can use."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.bits import Lists, lists_of_bits, pack_lists, unpack_bits
from vidsparse.kernels.planning.permute import in_token_order
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.choice import CHOICE, Alternative, choose, per_head, silent_heads
from vidsparse.policies.estimator import PLAN, Estimate, Inputs
from vidsparse.policies.judge import beside_density
from vidsparse.policies.lists import lists_of_mask, plan_of_lists
from vidsparse.policies.orders import Arranged
from vidsparse.policies.policy import Policy
from vidsparse.policies.work import Work
from vidsparse.state import Kept, LayerState, Memory, Verdict

ESTIMATE = "estimate of the plan"
REMEMBERED = 16  # static plans: a ramp of 16 steps at one size, or several sizes without a ramp
GEOMETRIES = 4  # of which everything that follows from them alone is kept
LAYERS = 4096  # of all experts, branches and geometries: none is forgotten within a generation


class Planner:
    """Makes the plans of one policy.

    Args:
        policy: What to compute at full sparsity.
        replan: Steps until a layer's plan is made anew; in between it is used again.
        budgets: Densities of layers and heads, instead of the policy's own.

    Attributes:
        notes: Sentences the user should read, such as a density that could not be met.
        counts: Calls of this generation by whose plan they ran: ``made`` by themselves, ``kept``
            from a branch or step before, ``of another layer``, or ``static``.
    """

    def __init__(self, policy: Policy, replan: int = 1, budgets: Budgets | None = None) -> None:
        self.policy = policy
        self._budgets = budgets
        self._replan = replan
        self._plans = Memory(REMEMBERED, BlockPlan.nbytes)
        self._estimates = Memory(4, lambda estimate: estimate.scores.nbytes)
        self._densities = Memory(REMEMBERED, lambda density: 0)
        self._states = Memory(LAYERS, LayerState.nbytes)
        self._geometries = Memory(GEOMETRIES, Kept.nbytes)
        self.notes: dict[str, None] = dict.fromkeys(beside_density(policy))
        self.counts: Counter[str] = Counter()

    def start_run(self) -> None:
        """Forget what belongs to the run before; static plans stay."""
        self._states.clear()

    def blocks(
        self, grid: TokenGrid, block: int, device: torch.device, key_block: int | None
    ) -> Blocks:
        """A sequence in raster order, cut into blocks; calls alike in that share what it keeps."""
        kept = self._geometries.get((grid, block, device, key_block), Kept)
        return Blocks(grid, block, device, key_block=key_block, kept=kept)

    def state(self, key: Hashable) -> LayerState:
        """What a layer remembers; the key names the layer, branch, expert and geometry."""
        return self._states.get(key, LayerState)

    def target(self, inputs: Inputs) -> float | None:
        """Density at full sparsity: as asked, or that of the static mask; None if unknown."""
        if inputs.density is not None or not self.policy.static:
            return inputs.density
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
            self.counts["static"] += 1
            plan = self._static_plan(inputs, self._density(inputs, way))
            return self._extended(self.policy.order.arrange(inputs), plan, way)
        inputs = dataclasses.replace(inputs, way=way)
        again = self._remembered(inputs, way)
        if again is not None:
            by_other = inputs.common.maker is not None and inputs.common.maker[0] != inputs.layer
            self.counts["of another layer" if by_other else "kept"] += 1
            return self._extended(*again, way)
        self.counts["made"] += 1
        arranged, plan = self._made(inputs, way)
        if inputs.remember and self.policy.can_reuse_plans:
            packed = pack_lists(plan.kv_count, plan.kv_index, plan.num_kv_blocks)
            inputs.common.park(PLAN, packed, inputs.step)
            inputs.common.way, inputs.common.verdict = way, None
            inputs.common.grid = inputs.blocks.grid
            inputs.common.maker = inputs.layer, inputs.heads
        return self._extended(arranged, plan, way)

    def again(self, work: Work, q: Tensor, k: Tensor, v: Tensor) -> Work:
        """The orders and the plan of an earlier call, for q, k and v in raster order."""
        q = in_token_order(q, work.q_order)
        k, v = (in_token_order(x, work.kv_order) for x in (k, v))
        inputs = dataclasses.replace(work.inputs, q=q, k=k, v=v)
        plan = dataclasses.replace(work.plan, pooled=None)  # means are made anew, to be learned
        return self.policy.compensation.again(dataclasses.replace(work, inputs=inputs, plan=plan))

    def static_plan(self, inputs: Inputs, way: float, target: float | None = None) -> BlockPlan:
        """The plan of a policy that looks at no data, from the geometry alone.

        Args:
            inputs: Without q, k and v.
            way: How far the schedule has come from dense, in (0, 1].
            target: Density at full sparsity, instead of the policy's own.
        """
        assert self.policy.static
        density = self._density(inputs, way) if target is None else 1.0 - way * (1.0 - target)
        return self._static_plan(inputs, density)

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
            return inputs.density
        return 1.0 - way * (1.0 - target)

    def _extended(self, arranged: Arranged, plan: BlockPlan, way: float) -> Work:
        """The call, with what the compensation adds to its plan."""
        work = Work(
            inputs=arranged.inputs,
            plan=plan,
            q_order=arranged.q_order,
            kv_order=arranged.kv_order,
            silent=silent_heads(self.policy.candidates, arranged.inputs.common.get(CHOICE)),
        )

        def deeper(steps: Sequence[float]) -> Iterator[Tensor]:
            policy, density = self.policy, self._density(work.inputs, way)
            estimate = work.inputs.told.pop(ESTIMATE, None) or policy.estimate(work.inputs)
            for step in steps:
                if density is None:
                    selector = policy.selector.further(step / way)
                    assert selector is not None
                    policy = dataclasses.replace(policy, selector=selector)
                else:
                    density = _at_most_one(density + step)
                plan = policy.plan(estimate, work.inputs, density=density, way=way)
                yield plan.to_block_mask()

        return self.policy.compensation.extend(work, way, deeper)

    def _made(self, inputs: Inputs, way: float) -> tuple[Arranged, BlockPlan]:
        """An order and a plan, from the data of this call."""
        policy = self.policy
        measured = policy.selector.measured(policy, inputs, way, self._static_estimate)
        if measured is not None:
            return measured
        density = self._density(inputs, way)
        if policy.alternatives is not None:
            arranged, keep = choose(policy, inputs, density, way, self._static_estimate)
            return arranged, plan_of_lists(lists_of_mask(keep), arranged.inputs.blocks)
        arranged = policy.order.arrange(inputs)
        estimate = policy.estimate(arranged.inputs)
        if not policy.compensation.reuses_plans:  # it asks for deeper plans of this very call
            arranged.inputs.told[ESTIMATE] = estimate
        return arranged, policy.plan(estimate, arranged.inputs, density=density, way=way)

    def _remembered(self, inputs: Inputs, way: float) -> tuple[Arranged, BlockPlan] | None:
        """The order and plan of an earlier call of this layer, if young and good enough."""
        common, step = inputs.common, inputs.step
        _check_maker(common, inputs)
        age, verdict = common.age(PLAN, step), common.verdict
        if age is None or not 0 <= age < self._replan or common.way != way:
            return None
        if verdict is not None and verdict[0] != step and not verdict[1]:
            return None
        packed, arranged = common.get(PLAN), self._arranged_again(inputs)
        assert packed is not None
        plan = plan_of_lists(self._fitted(packed, arranged.inputs), arranged.inputs.blocks)
        if age > 0 and (verdict is None or verdict[0] != step):
            serves = self.policy.selector.still_serves(self.policy, inputs, arranged, plan, way)
            if serves is not None:
                common.verdict = step, Verdict(serves)
        return arranged, plan

    def _fitted(self, packed: Tensor, inputs: Inputs) -> Lists:
        """The lists that are remembered, for a call whose text may be of another length.

        What they say of the video stays; text, which comes after it, is kept whole, as always.
        """
        rows, columns = inputs.blocks.rows, inputs.blocks.columns
        if packed.shape[-2:] == (rows, -(-columns // 8)):
            if inputs.common.grid == inputs.blocks.grid:
                return lists_of_bits(packed, columns)
            return lists_of_mask(unpack_bits(packed, columns) | self.policy.own_kept(inputs.blocks))
        keep = unpack_bits(packed, 8 * packed.shape[-1])
        keep = F.pad(keep, (0, columns - keep.shape[-1], 0, rows - keep.shape[-2]))
        return lists_of_mask(keep | self.policy.always(inputs))

    def _arranged_again(self, inputs: Inputs) -> Arranged:
        """In the order of the plan that is remembered."""
        choice = inputs.common.get(CHOICE)
        if choice is not None:
            return per_head(inputs, self.policy.candidates, choice, again=True)
        return self.policy.order.again(inputs)

    def nbytes(self) -> int:
        """Bytes remembered on the device, of calls and of static plans."""
        return self._plans.nbytes() + self._estimates.nbytes() + self._states.nbytes()

    def geometry_nbytes(self) -> int:
        """Bytes of what follows from a geometry alone: mostly one for each pair of blocks."""
        return self._geometries.nbytes()

    def host_nbytes(self) -> int:
        """Bytes remembered in host memory."""
        return self._states.nbytes(LayerState.host_nbytes)

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
            asked = inputs.density  # on a ramp, other densities only pass by
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


def _check_maker(common: LayerState, inputs: Inputs) -> None:
    """Raise BadInputError where the plan of a neighbour is of other heads than a layer has."""
    if common.maker is None or common.maker[1] == inputs.heads:
        return
    layer, heads = common.maker
    raise BadInputError(
        f"layer {inputs.layer} has {inputs.heads} heads, and layer {layer}, whose plan it would "
        f"use, has {heads}: give share_layers=1, or one that keeps them apart"
    )


def _at_most_one(density: float | Tensor) -> float | Tensor:
    return density.clamp(max=1.0) if isinstance(density, Tensor) else min(1.0, density)
