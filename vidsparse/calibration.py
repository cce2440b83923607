"""What a method chooses offline, computed from queries and keys that were recorded.

Each function looks at one layer at one step, all heads; ``calibrated.write_calibrated`` keeps what
they find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.choice import compared_at, losses
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.observed import Observed
from vidsparse.preset import Preset

Recording = tuple[Tensor, Tensor, Tensor]
"""q, k and v of one layer at one step, ``(batch, heads, seq, head_dim)``."""


def choices_for(
    preset: Preset,
    recordings: Sequence[Recording],
    grid: TokenGrid,
    *,
    layer: int = 0,
    step: int = 0,
    scale: float | None = None,
) -> list[str]:
    """What each head takes among a preset's alternatives, by its own rule.

    PAROAttention (arXiv 2506.16054) and Sparse-vDiT (2506.03065) choose so, offline, on a few
    prompts. What is lost is averaged over the recordings.

    Args:
        preset: With alternatives and a density.
        recordings: Of one layer at one step, raster order.
        grid: Of their tokens.
        layer: Number of the layer, of which sampled rows are drawn.
        step: Number of the step, likewise.
        scale: Score scale; ``head_dim ** -0.5`` when None.

    Returns:
        Names for a calibration file, one for each head.

    Raises:
        BadInputError: When the preset has no alternatives or nothing was recorded.
    """
    policy, lost = preset.policy, []
    if policy.alternatives is None or not recordings:
        raise BadInputError(
            f"preset {preset.name!r} {'has no alternatives' if recordings else 'saw nothing'}: "
            "give recordings of q, k and v to one whose heads choose, such as paro"
        )
    for q, k, v in recordings:
        block = preset.block_on(q.device.type, grid.tokens, q.shape[-1])
        inputs = Inputs(
            blocks=Blocks(grid, block, q.device), q=q, k=k, v=v, heads=q.shape[1], layer=layer,
            step=step, scale=q.shape[-1] ** -0.5 if scale is None else scale,
        )  # fmt: skip
        density = compared_at(policy, policy.density)
        found = losses(
            policy, inputs, density, lambda candidate, at: candidate.estimator.estimate(at)
        )
        lost.append(found.mean(dim=1))
    best = torch.stack(lost).mean(dim=0).argmin(dim=0)
    return [policy.alternatives.labels[at] for at in best.tolist()]


MARGINS = tuple(float(margin) for margin in range(-20, 1))


def margin_for(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    error: float = 0.05,
    block: int = 128,
    scale: float | None = None,
    rule: Observed | None = None,
    margins: tuple[float, ...] = MARGINS,
) -> float:
    """The largest margin of LiteAttention (arXiv 2511.11062) whose error is within a target.

    Of blocks that a first visit sees, those stay that come within the margin; the error is the
    relative L1 of the output with these alone.

    Args:
        q: ``(batch, heads, seq, head_dim)``, as recorded at one step of one layer.
        k: Likewise.
        v: Likewise.
        error: Relative L1 at most, the paper's .05.
        block: Tokens in a block.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        rule: How blocks are visited.
        margins: To choose among, ascending, in log2 units.

    Returns:
        The margin; the first where none is within the target.
    """
    number = -(-q.shape[2] // block)
    visited = torch.ones(*q.shape[:2], number, number, dtype=torch.bool, device=q.device)
    found = Visit(q, k, v, visited, block=block, scale=scale, rule=rule)
    return found.margin_within(error, found.out, margins)


class Visit:
    """What a visit of some blocks sees, and what would be left of them under a margin.

    Args:
        q: ``(batch, heads, seq, head_dim)``.
        k: Likewise.
        v: Likewise.
        visited: Blocks, boolean ``(batch, heads, M, N)``.
        always: Blocks that are never dropped, broadcastable to those.
        block: Tokens in a block.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        rule: How blocks are visited.
        step: At which step: the way there may differ.

    Attributes:
        out: Of these blocks alone, ``(batch, heads, seq, head_dim)``.
        lead: Of each block's scores over the largest so far, float32 ``(batch, heads, M, N)``, in
            natural units; -inf for what was not visited.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visited: Tensor,
        *,
        always: Tensor | None = None,
        block: int = 128,
        scale: float | None = None,
        rule: Observed | None = None,
        step: int = 0,
    ) -> None:
        self._qkv, self._block, self._scale, self._always = (q, k, v), block, scale, always
        plan = self._plan(visited)
        visits = (Observed() if rule is None else rule).visits(plan, step)
        seen = attention(q, k, v, visits, scale=scale, observe=True)
        at = torch.arange(visits.kv_index.shape[-1], device=q.device)
        margin = seen.margin.masked_fill(at >= visits.kv_count[..., None], -math.inf)
        lead = torch.full(visited.shape, -math.inf, dtype=margin.dtype, device=q.device)
        index = visits.kv_index.clamp(min=0, max=visited.shape[-1] - 1).long()
        self.lead = lead.scatter_reduce_(-1, index.expand(margin.shape), margin, "amax")
        self.out = seen.out

    def left(self, margin: float) -> Tensor:
        """The blocks that stay, boolean ``(batch, heads, M, N)``."""
        keep = self.lead >= margin * math.log(2)
        return keep if self._always is None else keep | self._always

    def margin_within(
        self, error: float, exact: Tensor, margins: tuple[float, ...] = MARGINS
    ) -> float:
        """The largest margin whose blocks give the output within a relative L1; else the first.

        Args:
            error: Relative L1 at most.
            exact: The output that is held against, ``(batch, heads, seq, head_dim)``.
            margins: Ascending; the error grows with them.
        """
        low, high = 0, len(margins)
        while high - low > 1:
            middle = (low + high) // 2
            out = attention(*self._qkv, self._plan(self.left(margins[middle])), scale=self._scale)
            is_within = float((out - exact).abs().sum() / exact.abs().sum()) <= error
            low, high = (middle, high) if is_within else (low, middle)
        return margins[low]

    def _plan(self, keep: Tensor) -> BlockPlan:
        tokens, block = self._qkv[0].shape[2], self._block
        return BlockPlan.from_mask(keep, q_len=tokens, kv_len=tokens, q_block=block, kv_block=block)
