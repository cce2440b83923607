"""The one operator: schedule, then policy, then kernel, then bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.errors import DenseFallbackError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.case import Case
from vidsparse.kernels.engines import check_engine, choose_engine
from vidsparse.kernels.plan import BlockPlan
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.presets import Preset
from vidsparse.stats import CallKey, Stats, Stopwatch

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Where in a generation an attention call stands.

    Attributes:
        grid: Layout of the sequence; None when the plug-in could not read it.
        layer: Index of the self-attention layer in its transformer, from 0.
        step: Denoising step, from 0.
        sigma: Noise level in [0, 1]; None when unknown.
        branch: Guidance branch: cond, uncond, or another name.
        expert: Which transformer of the pipeline.
        unsupported: Why the plug-in knows that this call cannot be sparse, in the user's words.
        scale: Score scale; ``head_dim ** -0.5`` when None.
    """

    grid: TokenGrid | None
    layer: int
    step: int
    sigma: float | None
    branch: str = "cond"
    expert: str = "transformer"
    unsupported: str | None = None
    scale: float | None = None

    @property
    def key(self) -> CallKey:
        return CallKey(self.step, self.layer, f"{self.expert}/{self.branch}")


class SparseAttention:
    """Sparse attention for one pipeline: ``engine(q, k, v, call, dense) -> out``.

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
        self._planner = Planner(preset.policy)

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
        if self._scheduled_dense(call):
            self._record(call, torch.ones(1))
            return dense(q, k, v)
        reason = self._why_dense(q, k, call)
        if reason is not None:
            return self._fall_back(reason, q, k, v, call, dense)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with Stopwatch() as total, Stopwatch() as planning:
            plan = self._plan(q, k, v, call)
        if plan is None:
            self._record(call, torch.ones(1))
            return dense(*(x.transpose(1, 2) for x in (q, k, v)))
        with total:
            out = self._attend(q, k, v, plan, call)
        self._record(call, plan.head_density().mean(dim=0))
        if q.device.type == "cpu":  # elsewhere a host clock only times the launches
            self.stats.attention_seconds += total.seconds
            self.stats.plan_seconds += planning.seconds
        return out.transpose(1, 2)

    def _scheduled_dense(self, call: Call) -> bool:
        """Whether this call is dense whatever the policy would do: not a fallback."""
        if call.sigma is None:
            return False
        least = self.preset.policy.density or 0.0
        return self.preset.schedule.density(call.sigma, call.layer, least) >= 1.0

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

    def _plan(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> BlockPlan | None:
        """What to compute now; None for everything."""
        assert call.grid is not None
        assert call.sigma is not None
        inputs = Inputs(
            blocks=Blocks(call.grid, self.preset.policy.block, q.device),
            q=q,
            k=k,
            scale=q.shape[-1] ** -0.5 if call.scale is None else call.scale,
            heads=q.shape[1],
            layer=call.layer,
        )
        target = self._planner.target(inputs)
        density = self.preset.schedule.density(call.sigma, call.layer, target)
        if density >= 1.0:
            return None
        plan = self._planner.plan(inputs, density)
        return self.preset.policy.compensate(plan, k, v, inputs.blocks.sizes)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, call: Call) -> Tensor:
        engine = self.engine
        if engine == "auto":
            engine = choose_engine(Case.of(q, k, v, plan, None, False)).engine
        self.stats.engines[engine] += 1
        return attention(q, k, v, plan, scale=call.scale, engine=engine)

    def _record(self, call: Call, head_density: Tensor) -> None:
        self.stats.record(call.key, call.sigma, head_density)
        self.stats.memory_bytes = self._planner.nbytes()
        self.stats.notes |= self._planner.notes
