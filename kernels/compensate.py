"""What is done for skipped blocks after the exact part: pooled stand-ins, or a rescale.

Pooled stand-ins (SVG-EAR): each skipped block j attends through its mean key with bias ln|K_j|
and carries its mean value, in the same softmax as the exact part. That softmax is continued from
the log-sum-exp of the exact part, so it works after any engine.

Rescale (Rectified SpaAttn): the exact output is scaled to its share of the estimated mass, and
compensated blocks add their estimated mass times their mean value. It needs no kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import BlockPlan, block_of_token
from vidsparse.kernels.reference import skipped_blocks


def add_skipped(
    q: Tensor, out: Tensor, lse: Tensor, plan: BlockPlan, *, scale: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Let the blocks a plan skips take part through ``plan.pooled``.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, in the order they come in; the plan's ``q_order``
            only says which query is in which block.
        out: Attention over the listed blocks, shape of ``q``.
        lse: Its log-sum-exp, float32 ``(batch, heads, q_len)``.
        plan: With ``pooled``.
        scale: Score scale.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        The output and log-sum-exp over listed and pooled blocks.
    """
    if impl not in ("auto", "triton", "reference"):
        raise BadInputError(f"unknown impl {impl!r}: choose auto, triton or reference")
    if plan.pooled is None:
        raise BadInputError("the plan has no pooled blocks: attach them with Pooled(...)")
    if impl == "triton" or (impl == "auto" and q.is_cuda):
        from vidsparse.kernels.triton.compensate import launch

        return launch(q, out, lse, plan, scale)
    return _add_skipped_reference(q, out, lse, plan, scale)


def _add_skipped_reference(
    q: Tensor, out: Tensor, lse: Tensor, plan: BlockPlan, scale: float
) -> tuple[Tensor, Tensor]:
    assert plan.pooled is not None
    dtype = torch.promote_types(q.dtype, torch.float32)
    key, value, size = (x.to(dtype) for x in (plan.pooled.key, plan.pooled.value, plan.pooled.size))
    scores = q.to(dtype) @ key.mT * scale + size.log().unsqueeze(-2)
    scores = scores.masked_fill(~skipped_blocks(plan), float("-inf"))
    total = torch.logaddexp(lse.to(dtype), scores.logsumexp(dim=-1))
    safe = total.where(total.isfinite(), 0)[..., None]
    share = (lse.to(dtype)[..., None] - safe).exp()
    mixed = out.to(dtype) * share + (scores - safe).exp() @ value
    return torch.empty_like(q).copy_(mixed), total.to(lse.dtype)


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
    rows = block_of_token(plan.q_len, plan.q_block, plan.q_offsets, plan.q_order).to(out.device)
    rows = rows.expand(*out.shape[:2], -1)[..., None]
    extra = (share @ value.to(share.dtype)).gather(2, rows.expand(*out.shape))
    kept = (1 - share.sum(dim=-1, keepdim=True)).gather(2, rows)
    return (out * kept + extra).to(out.dtype)
