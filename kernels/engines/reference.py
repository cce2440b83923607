"""Plain-torch attention under a block plan: slow, exact, the truth every engine is tested against.

    out[i] = sum_j p[i, j] v[j],   p[i, :] = softmax over computed j of (scale * q[i] . k[j])

With ``plan.pooled``, each skipped block adds one more column: its mean key, scored with
``+ ln(size)``, carrying its mean value: the compensation of SVG-EAR.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, block_of_token


@overload
def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]: ...
def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says, through the full score matrix.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute.
        scale: Score scale, ``head_dim ** -0.5`` when None.
        return_lse: Whether to return the log-sum-exp.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype, computed in float32, or in float64 when
        q is float64; and the natural log of the sum of ``exp(score)``, ``(batch, heads, q_len)``
        in the dtype of the computation, or None. A row without any key is zero, its log-sum-exp
        ``-inf``.
    """
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    out, lse = attend_to(*scores_and_values(q, k, v, plan, scale))
    out = torch.empty_like(q).copy_(out) if not q.requires_grad else out
    return out.to(q.dtype), lse if return_lse else None


def attend_to(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of scores ``(batch, heads, q_len, columns)`` and columns' values."""
    lse = scores.logsumexp(dim=-1)
    weight = (scores - lse.where(lse.isfinite(), 0)[..., None]).exp()
    return weight @ value, lse


def scores_and_values(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Scores ``(batch, heads, q_len, columns)``, -inf where skipped, and the columns' values."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    query, key, value = (x.to(dtype) for x in (q, k, v))
    scores = (query @ key.mT * scale).masked_fill(~plan.to_dense_mask(), float("-inf"))
    if plan.pooled is None:
        return scores, value
    pooled_key, pooled_value = (x.to(dtype) for x in (plan.pooled.key, plan.pooled.value))
    size = plan.pooled.size.to(dtype)
    extra = query @ pooled_key.mT * scale + size.log().unsqueeze(-2)
    extra = extra.masked_fill(~skipped_blocks(plan), float("-inf"))
    scores = torch.cat([scores, extra], dim=-1)
    return scores, torch.cat([value, pooled_value], dim=2)


def skipped_blocks(plan: BlockPlan) -> Tensor:
    """Which key blocks each query token skips, boolean ``(B|1, H|1, q_len, N)``."""
    rows = block_of_token(plan.q_len, plan.q_block, plan.q_offsets)
    skipped = ~plan.to_block_mask()
    rows = rows.to(skipped.device)[..., None]
    batch, heads = torch.broadcast_shapes(skipped.shape[:2], rows.shape[:2])
    skipped = skipped.expand(batch, heads, -1, -1)
    return skipped.gather(2, rows.expand(batch, heads, -1, skipped.shape[-1]))
