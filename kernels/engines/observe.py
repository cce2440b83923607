"""Attention that also reports what it saw of each block, for methods that learn from it.

LiteAttention (arXiv 2511.11062) drops a block when none of its scores came near the running
maximum of its row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.reference import attend_to, scores_and_values
from vidsparse.kernels.plan import BlockPlan, block_of_token

NOTHING = float("-inf")


class Observed(NamedTuple):
    """Attention and, for each listed block, what was seen of it.

    Attributes:
        out: ``(batch, heads, q_len, head_dim)``.
        lse: Log-sum-exp of each row, float32 ``(batch, heads, q_len)``.
        margin: Largest lead, over the rows of the query block, of a score of this key block over
            the row's maximum so far in list order; natural units, float32 ``(batch, heads, M,
            K)``. ``inf`` for the first block that has a key, ``-inf`` for one without keys.
            Entries after the count hold nothing.
    """

    out: Tensor
    lse: Tensor
    margin: Tensor


def check_observable(plan: BlockPlan) -> None:
    """Raise BadInputError for a plan of unequal, larger or partial blocks, or with stand-ins."""
    if plan.q_offsets is not None or plan.kv_offsets is not None or plan.pooled is not None:
        raise BadInputError("observing needs equal blocks and no pooled stand-ins")
    if plan.partial is not None:
        raise BadInputError("observing needs whole blocks, and some of this plan are partial")
    if max(plan.q_block, plan.kv_block) > 128:
        raise BadInputError(
            f"observing needs blocks of at most 128 tokens, got {plan.q_block} x {plan.kv_block}"
        )


def observe_reference(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float
) -> Observed:
    """Attend as ``plan`` says and report on each listed block.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: Of equal blocks of at most 128 tokens, without pooled stand-ins.
        scale: Score scale.
    """
    scores, value = scores_and_values(q, k, v, plan, scale)
    out, lse = attend_to(scores, value)
    missing = plan.num_kv_blocks * plan.kv_block - plan.kv_len
    tiles = F.pad(scores, (0, missing), value=NOTHING).unflatten(-1, (-1, plan.kv_block))
    rows = block_of_token(plan.q_len, plan.q_block).to(q.device)
    rows = rows.expand(q.shape[:3])[..., None]
    used = torch.arange(plan.kv_index.shape[-1], device=q.device) < plan.kv_count[..., None]
    listed, is_used = (
        y.expand(*q.shape[:2], -1, -1).gather(2, rows.expand(-1, -1, -1, y.shape[-1]))
        for y in (plan.kv_index.where(used, 0).long(), used)
    )

    def in_list_order(x: Tensor) -> Tensor:
        """From ``(batch, heads, q_len, N)`` to ``(batch, heads, q_len, K)``."""
        return x.gather(-1, listed).masked_fill(~is_used, NOTHING)

    lead = lead_of(in_list_order(tiles.amax(dim=-1)))
    start = lead.new_full((*lead.shape[:2], plan.num_q_blocks, lead.shape[-1]), NOTHING)
    margin = start.scatter_reduce(2, rows.expand(lead.shape), lead, reduce="amax")
    return Observed(out.to(q.dtype), lse.float(), margin.float())


def lead_of(highest: Tensor) -> Tensor:
    """How far each block's highest score in a row, ``(..., K)``, lies above those before it."""
    before = F.pad(highest.cummax(dim=-1).values[..., :-1], (1, 0), value=NOTHING)
    return (highest - before).where(highest.isfinite(), NOTHING)
