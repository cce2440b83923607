"""Pooled stand-ins for the blocks that a plan skips (SVG-EAR), after the exact part.

Each skipped block j attends through its mean key with bias ln|K_j| and carries its mean value, in
the same softmax as the exact part. That softmax is continued from the log-sum-exp of the exact
part, so it works after any engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.engines.reference import skipped_blocks
from vidsparse.kernels.plan import BlockPlan


def add_skipped(
    q: Tensor, out: Tensor, lse: Tensor, plan: BlockPlan, *, scale: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Let the blocks a plan skips take part through ``plan.pooled``.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        out: Attention over the listed blocks, shape of ``q``.
        lse: Its log-sum-exp, float32 ``(batch, heads, q_len)``.
        plan: With ``pooled``.
        scale: Score scale.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        The output and log-sum-exp over listed and pooled blocks.
    """
    if plan.pooled is None:
        raise BadInputError("the plan has no pooled blocks: attach them with Pooled(...)")
    if use_triton(impl, q):
        from vidsparse.kernels.triton.stand_ins import launch

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
