"""The exact output scaled to its share of the estimated mass (Rectified SpaAttn); no kernel.

Compensated blocks add their estimated mass times their mean value.
"""

from __future__ import annotations

from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, block_of_token


def rescale(
    out: Tensor,
    plan: BlockPlan,
    mass: Tensor,
    value: Tensor,
    compensated: Tensor | None = None,
) -> Tensor:
    """Scale the exact output to its share of the mass and add compensated blocks.

        out_i R_i + sum over compensated j of P_ij mean(v_j),   R_i = 1 - sum of those P_ij

    Blocks that are neither listed nor compensated count as if the listed ones
    stood for them.

    Args:
        out: ``(batch, heads, q_len, head_dim)``, attention over the listed blocks.
        plan: What was computed.
        mass: Estimated attention of each query block to each key block, rows summing to one,
            ``(batch, heads, M, N)``.
        value: Mean value of each key block, ``(batch, heads, N, head_dim)``.
        compensated: Which skipped blocks are worth it, boolean and broadcastable to ``mass``; all
            of them when None.

    Returns:
        Shape and dtype of ``out``.
    """
    skipped = ~plan.to_block_mask()
    chosen = skipped if compensated is None else skipped & compensated
    share = mass.masked_fill(~chosen, 0.0)
    rows = block_of_token(plan.q_len, plan.q_block, plan.q_offsets).to(out.device)
    rows = rows.expand(*out.shape[:2], -1)[..., None]
    extra = (share @ value.to(share.dtype)).gather(2, rows.expand(*out.shape))
    kept = (1 - share.sum(dim=-1, keepdim=True)).gather(2, rows)
    return (out * kept + extra).to(out.dtype)
