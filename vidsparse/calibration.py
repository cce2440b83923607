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
from vidsparse.policies.choice import COMPARED_AT, losses
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
        block = policy.block_on(q.device.type, grid.tokens, q.shape[-1])
        inputs = Inputs(
            blocks=Blocks(grid, block, q.device), q=q, k=k, v=v, heads=q.shape[1], layer=layer,
            step=step, scale=q.shape[-1] ** -0.5 if scale is None else scale,
        )  # fmt: skip
        density = policy.density or COMPARED_AT
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
    rule = Observed() if rule is None else rule
    number, tokens = -(-q.shape[2] // block), q.shape[2]
    everything = BlockPlan.from_mask(
        torch.ones(*q.shape[:2], number, number, dtype=torch.bool, device=q.device),
        q_len=tokens, kv_len=tokens, q_block=block, kv_block=block,
    )  # fmt: skip
    visits = rule.visits(everything)
    seen = attention(q, k, v, visits, scale=scale, observe=True)
    lead = torch.empty_like(seen.margin).scatter_(-1, visits.kv_index.long(), seen.margin)
    best = margins[0]
    for margin in margins:
        keep = lead >= margin * math.log(2)
        plan = BlockPlan.from_mask(keep, q_len=tokens, kv_len=tokens, q_block=block, kv_block=block)
        out = attention(q, k, v, plan, scale=scale)
        if float((out - seen.out).abs().sum() / seen.out.abs().sum()) > error:
            break
        best = margin
    return best
