"""The one operator: schedule, then policy, then kernel, then bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidsparse.errors import DenseFallbackError
from vidsparse.grid import TokenGrid
from vidsparse.heads import HeadShare, all_of
from vidsparse.kernels.engines import check_engine
from vidsparse.kernels.permute import unpermute_tokens
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.work import Kernel, Work
from vidsparse.preset import Preset
from vidsparse.stats import CallKey, Stats, Stopwatch

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
Observer = Callable[["Call", Work, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Where in a generation an attention call stands.

    Attributes:
        grid: Layout of the sequence; None when the plug-in could not read it.
        layer: Index of the self-attention layer in its transformer, from 0.
        step: Denoising step, from 0.
        sigma: Noise level in [0, 1]; None when unknown.
        next_sigma: Noise level of the next step; None when unknown, or at the last.
        branch: Guidance branch: cond, uncond, or another name.
        expert: Which transformer of the pipeline.
        unsupported: Why the plug-in knows that this call cannot be sparse, in the user's words.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        sample: Which part of the batch this is, where its entries cannot run as one.
        share: Which of the layer's heads q, k and v hold, where devices share them; None if all.
    """

    grid: TokenGrid | None
    layer: int
    step: int
    sigma: float | None
    next_sigma: float | None = None
    branch: str = "cond"
    expert: str = "transformer"
    unsupported: str | None = None
    scale: float | None = None
    sample: int = 0
    share: HeadShare | None = None

    @property
    def key(self) -> CallKey:
        part = f"#{self.sample}" if self.sample else ""
        return CallKey(self.step, self.layer, f"{self.expert}/{self.branch}{part}")


class SparseAttention:
    """Sparse attention for one pipeline: ``engine(q, k, v, call, dense) -> out``.

    Attributes:
        observers: Called after every sparse call as ``(call, work, q, k, v, out)``, the tensors
            ``(batch, heads, seq, head_dim)`` in raster order.

    Args:
        preset: What to compute, and when.
        engine: Kernel engine, "auto" or a name in ``kernels.engines.ENGINES``.
        strict: Raise instead of falling back to dense.

    Raises:
        BadInputError: For an unknown engine.
    """

    def __init__(self, preset: Preset, *, engine: str = "auto", strict: bool = False) -> None:
        check_engine(engine)
        self.preset = preset
        self.engine = engine
        self.strict = strict
        self.stats = Stats()
        self.observers: list[Observer] = []
        self._planner = Planner(preset.policy, preset.schedule.replan, preset.schedule.budgets)

    def start_generation(self) -> None:
        """Forget the generation before: its counts, and what its layers remembered."""
        self.stats.start_generation()
        self._planner.start_generation()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense) -> Tensor:
        """Attend.

        Args:
            q: ``(batch, seq, heads, head_dim)``, as diffusers has it.
            k: ``(batch, seq, heads, head_dim)``.
            v: ``(batch, seq, heads, head_dim)``.
            call: Where in the generation this is.
            dense: The attention the model would have called.

        Returns:
            ``(batch, seq, heads, head_dim)``.

        Raises:
            DenseFallbackError: When the session is strict and this call cannot be sparse.
        """
        way = self._way(call)
        if self._scheduled_dense(call, way):
            self._record(call, torch.ones(1))
            return dense(q, k, v)
        reason = self._why_dense(q, k, call)
        if reason is not None:
            return self._fall_back(reason, q, k, v, call, dense)
        with Stopwatch(q.device) as total:
            with Stopwatch(q.device) as planning:
                inputs = self._inputs(q, k, v, call)
                work = self._planner.work(inputs, way)
            out = self._attend(work, call, way)
        self.stats.time(total, planning)
        for observe in self.observers:
            observe(call, work, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), out)
        return out.transpose(1, 2)

    def _scheduled_dense(self, call: Call, way: float) -> bool:
        """Whether this call is dense whatever the policy would do: not a fallback."""
        if call.sigma is None:
            return False
        return way <= 0.0 or self.preset.policy.density == 1.0

    def _way(self, call: Call) -> float:
        """How far a call has come from dense, 0, to full sparsity, 1.

        What is observed is first observed at the last dense step, as if it were the one after;
        where nobody knows which that is, at a dense one besides those of the schedule.
        """
        schedule = self.preset.schedule
        way = schedule.way(call.sigma or 0.0, call.layer)
        observes = self.preset.policy.estimator.observes
        if way > 0.0 or call.next_sigma is None or not observes:
            return way
        return schedule.way(call.next_sigma, call.layer)

    def _why_dense(self, q: Tensor, k: Tensor, call: Call) -> str | None:
        """The reason this call cannot be sparse, in the user's words."""
        tokens = q.shape[1]
        if call.unsupported is not None:
            return call.unsupported
        if call.grid is None:
            return "the token grid of this call is unknown"
        if tokens != k.shape[1] or tokens != call.grid.tokens:
            return f"{tokens} queries and {k.shape[1]} keys do not fit the grid {call.grid}"
        if call.sigma is None:
            return "the noise level of this step is unknown"
        if tokens < self.preset.min_tokens:
            return (
                f"{tokens:,} tokens are too few to gain (min_tokens is {self.preset.min_tokens:,})"
            )
        return None

    def _fall_back(
        self, reason: str, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense
    ) -> Tensor:
        if self.strict:
            raise DenseFallbackError(
                f"layer {call.layer} at step {call.step} cannot be sparse: {reason}; "
                "run without strict to let it be dense"
            )
        self.stats.fallbacks[reason] += 1
        self._record(call, torch.ones(1))
        return dense(q, k, v)

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Inputs:
        """The call as policies see it; tensors ``(batch, heads, seq, head_dim)``."""
        assert call.grid is not None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        where = (call.expert, call.layer, call.sample, q.shape[:2], str(q.device))
        schedule, planner = self.preset.schedule, self._planner
        state = planner.state((call.branch, call.grid, *where))
        alike = _alike_in_branches(call.grid, self.preset.policy)
        shared = planner.state((alike, *where)) if schedule.share_branches else None
        for each in (state, shared):
            if each is not None:
                each.follow(call.share)
        return Inputs(
            blocks=Blocks(call.grid, self.preset.policy.block, q.device),
            q=q,
            k=k,
            v=v,
            scale=q.shape[-1] ** -0.5 if call.scale is None else call.scale,
            heads=q.shape[1],
            share=call.share,
            layer=call.layer,
            expert=call.expert,
            step=call.step,
            state=state,
            shared=shared,
            remember=schedule.share_branches or schedule.replan > 1,
        )

    def _attend(self, work: Work, call: Call, way: float) -> Tensor:
        """Run a plan, with what its policy does after it; back in raster order."""
        kernel = Kernel(scale=work.inputs.scale, engine=self.engine, ran=self.stats.engines)
        head_density = work.head_density()
        out, besides = self.preset.policy.attend(
            work, kernel, way=way, replan=self.preset.schedule.replan
        )
        head_density = head_density + besides if besides else head_density
        head_density = all_of(call.share, head_density).mean(dim=0)
        self._record(call, head_density)
        if call.share is not None:
            self.stats.loads[call.key] = call.share.imbalance(head_density)
        return out if work.q_order is None else unpermute_tokens(out, work.q_order)

    def _record(self, call: Call, head_density: Tensor) -> None:
        self.stats.record(call.key, call.sigma, head_density)
        self.stats.memory_bytes = self._planner.nbytes()
        self.stats.host_memory_bytes = self._planner.host_nbytes()
        self.stats.notes |= self._planner.notes


def _alike_in_branches(grid: TokenGrid, policy: Policy) -> TokenGrid:
    """What branches have in common that can share a plan: their texts may differ in length.

    Before the video only where text is a cluster of its own; equal blocks would be cut elsewhere.
    """
    prefix = grid.prefix if policy.order.static else min(grid.prefix, 1)
    return replace(grid, prefix=prefix, suffix=0)
