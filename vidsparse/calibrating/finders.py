"""What is found in dense runs: choices of heads, margins of layers, masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidsparse.calibrated import Values
from vidsparse.calibrating.watch import Where, alone, where
from vidsparse.calibration import MARGINS, Visit
from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.bits import pack_bits, unpack_bits
from vidsparse.policies.choice import Alternative, compared_at, losses, per_head
from vidsparse.policies.choosing import ChooseBy
from vidsparse.policies.estimator import Estimate, Inputs
from vidsparse.policies.exact import Exact
from vidsparse.policies.observed import Observed
from vidsparse.policies.work import Work
from vidsparse.preset import Preset
from vidsparse.sparse_attention import Call

WHOLE = (0.0, 1.0)  # a run that is one part


@dataclass
class Choices:
    """What each head loses by what it may take, by the preset's own rule, over all calls.

    Attributes:
        preset: With alternatives.
        lost: Sums over calls, ``(candidates, heads)``, of each layer and step.
    """

    preset: Preset
    lost: dict[Where, Tensor] = field(default_factory=dict)
    _static: dict[Hashable, Estimate] = field(default_factory=dict)

    def start_run(self) -> None:
        """Runs are summed."""

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Add what a call loses."""
        policy, at = self.preset.policy, where(call)
        assert policy.alternatives is not None
        if policy.alternatives.choose_by is ChooseBy.BLOCKINESS:
            at = WHOLE, *at[1:]  # one nesting for the whole run, as published
        inputs = alone(self.preset, call, work)
        density = compared_at(policy, inputs.density)
        lost = losses(policy, inputs, density, self._estimate).mean(dim=1)
        self.lost[at] = self.lost[at] + lost if at in self.lost else lost

    def _estimate(self, candidate: Alternative, inputs: Inputs) -> Estimate:
        """Those that need no data are made once."""
        key = inputs.blocks.grid, candidate
        if key not in self._static:
            self._static[key] = candidate.estimator.estimate(inputs)
        return self._static[key]

    def found(self) -> dict[Where, Values]:
        """What each head takes: that of the least sum."""
        rule = self.preset.policy.alternatives
        assert rule is not None
        return {
            at: tuple(rule.labels[best] for best in lost.argmin(dim=0).tolist())
            for at, lost in self.lost.items()
        }


@dataclass
class Margins:
    """The largest margin of each layer and step whose output stays within an error.

    Blocks that one step drops are not there at the next, as in a run; each guidance branch of each
    run goes its own way, and the least margin of all is taken.

    Attributes:
        preset: That observes.
        error: Relative L1 at most.
        least: Of each layer and step.
    """

    preset: Preset
    error: float
    least: dict[Where, float] = field(default_factory=dict)
    _left: dict[Hashable, Tensor] = field(default_factory=dict)

    def start_run(self) -> None:
        """All blocks are there again."""
        self._left.clear()

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Find the margin of a call, and drop what lies beyond it."""
        rule, inputs, at = self.preset.policy.estimator, alone(self.preset, call, work), where(call)
        assert isinstance(rule, Observed)
        blocks, way = inputs.blocks, (call.expert, call.layer, call.branch, call.sample, call.turn)
        number, always = blocks.number, self.preset.policy.own_kept(blocks)
        if way in self._left:
            visited = unpack_bits(self._left[way], number)
        else:
            visited = torch.ones(*q.shape[:2], number, number, dtype=torch.bool, device=q.device)
        visit = Visit(
            q, k, v, visited, always=always, block=blocks.block, scale=inputs.scale, rule=rule,
            step=call.step,
        )  # fmt: skip
        margin = visit.margin_within(self.error, out)
        self._left[way] = pack_bits(visit.left(margin))
        self.least[at] = min(margin, self.least.get(at, MARGINS[-1]))

    def found(self) -> dict[Where, Values]:
        """The margin of each layer, one for all its heads."""
        return {at: (margin,) for at, margin in self.least.items()}


@dataclass
class Masks:
    """The blocks of each head that hold the most exact attention, in the order that it took.

    Steps of the first half of the run have masks of their own, all others share those of the first
    of them. Of guidance branches the first that is seen is taken, of a batch the mean.

    Attributes:
        preset: With the choices of its heads, and a density.
        bits: By part, transformer and layer, uint8 ``(heads, M, ceil(N / 8))`` on the CPU.
        grid: The tokens that they are of.
        block: Tokens in a block.
    """

    preset: Preset
    bits: dict[tuple[int, str, int], Tensor] = field(default_factory=dict)
    grid: TokenGrid | None = None
    block: int = 0
    _ends: dict[int, float] = field(default_factory=dict)
    _densities: list[Tensor] = field(default_factory=list)

    def start_run(self) -> None:
        """One run is seen."""

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Make the masks of a call, unless those of its step are there."""
        assert call.progress is not None
        step, half = call.progress.at, (len(call.progress.bounds) - 1) // 2
        key = min(step, half), call.expert, call.layer
        if key in self.bits:
            return
        self._ends[key[0]] = call.progress.after if step < half else 1.0
        inputs = alone(self.preset, call, work)
        self.grid, self.block = inputs.blocks.grid, inputs.blocks.block
        plan = exact_plan(self.preset, inputs)
        self._densities.append(plan.head_density().mean())
        self.bits[key] = pack_bits(plan.to_block_mask()[0]).cpu()

    @property
    def density(self) -> float:
        """Mean of all masks."""
        return float(torch.stack(self._densities).mean())

    def parts(self) -> tuple[tuple[float, ...], dict[tuple[int, str, int], Tensor]]:
        """Where the parts end, and the masks by their numbers."""
        steps = sorted(self._ends)
        ends = [self._ends[step] for step in steps[:-1]] + [1.0]
        renamed = {
            (steps.index(step), expert, layer): bits
            for (step, expert, layer), bits in self.bits.items()
        }
        return tuple(ends), renamed


def exact_plan(preset: Preset, inputs: Inputs) -> BlockPlan:
    """A preset's plan by exact attention instead of its estimator, each head in its own order.

    Args:
        preset: With the choices of its heads.
        inputs: In raster order, with a density; of a batch the mean attention decides.
    """
    policy = preset.policy
    assert policy.alternatives is not None
    choice = policy.alternatives.named(inputs)
    assert choice is not None
    arranged = per_head(inputs, policy.candidates, choice).inputs
    mass = Exact().estimate(arranged).scores.exp().mean(dim=0, keepdim=True).log()
    q, k, v = (x[:1] for x in arranged.qkv)
    one = dataclasses.replace(arranged, q=q, k=k, v=v)
    return policy.plan(Estimate(scores=mass), one, density=inputs.density, measure=Exact.measure)
