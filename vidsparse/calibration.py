"""What a method chooses offline, computed from queries and keys that were recorded.

Each function looks at one layer at one step, all heads; ``calibrated.write_calibrated`` keeps what
they find.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidsparse.kernels.attention import attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.policies.observed import Observed

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
