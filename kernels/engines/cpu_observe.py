"""What ``observe`` reports, by gathering the keys of one query block at a time: made for CPUs.

What a plan skips costs nothing, and no more scores exist at once than those of one query block.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vidsparse.kernels.engines.observe import NOTHING, Observed, lead_of
from vidsparse.kernels.plan import BlockPlan


def observe_gathered(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float) -> Observed:
    """Attend and report; arguments and result as in ``observe_reference``."""
    batch, heads = q.shape[:2]
    index = plan.kv_index.long().expand(batch, heads, -1, -1)
    counts = plan.kv_count.expand(batch, heads, -1).tolist()
    margin = torch.full(index.shape, NOTHING, device=q.device)
    lse = torch.full(q.shape[:3], NOTHING, device=q.device)
    out = torch.zeros_like(q)
    for b, h, m in itertools.product(range(batch), range(heads), range(plan.num_q_blocks)):
        number = counts[b][h][m]
        if not number:
            continue
        rows = slice(m * plan.q_block, (m + 1) * plan.q_block)
        first = index[b, h, m, :number, None] * plan.kv_block
        token = (first + torch.arange(plan.kv_block, device=q.device)).flatten()
        near = token.clamp(max=plan.kv_len - 1)
        found = _of_list(
            q[b, h, rows], k[b, h, near], v[b, h, near],
            token < plan.kv_len, number, scale,
        )  # fmt: skip
        out[b, h, rows], lse[b, h, rows] = found.out, found.lse
        margin[b, h, m, :number] = found.margin
    return Observed(out, lse, margin)


def _of_list(
    q: Tensor, k: Tensor, v: Tensor, exists: Tensor, number: int, scale: float
) -> Observed:
    """One query block ``(rows, head_dim)`` and the keys of its list, ``(number * size, ...)``.

    The result is of these rows and of the blocks of this list.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).mT * scale).masked_fill_(~exists, NOTHING)
    highest = scores.unflatten(-1, (number, -1)).amax(dim=-1)  # (rows, number)
    top = highest.amax(dim=-1, keepdim=True)
    top = top.where(top.isfinite(), 0)
    weights = (scores - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return Observed(
        out=(weights @ v.to(wide) / total.where(total > 0, 1)).to(q.dtype),
        lse=(total.log() + top)[:, 0].float(),
        margin=lead_of(highest).amax(dim=0).float(),
    )
