"""Plain-torch attention under a block plan: slow, exact, the truth every engine is tested against.

    out[i] = sum_j p[i, j] v[j],   p[i, :] = softmax over computed j of (scale * q[i] . k[j])

With ``plan.pooled``, each skipped block adds one more column: its mean key, scored with
``+ ln(size)``, carrying its mean value: the compensation of SVG-EAR.
"""

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float | None = None
) -> Tensor:
    """Attend as ``plan`` says, through the full score matrix.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute.
        scale: Score scale, ``head_dim ** -0.5`` when None.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype; computed in float32, or in float64 when
        q is float64.
    """
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    dtype = torch.promote_types(q.dtype, torch.float32)
    query, key, value = (x.to(dtype) for x in (q, k, v))
    scores = (query @ key.mT * scale).masked_fill_(~plan.to_dense_mask(), float("-inf"))
    if plan.pooled is not None:
        pooled_key, pooled_value = (x.to(dtype) for x in (plan.pooled.key, plan.pooled.value))
        skipped = ~plan.to_block_mask().repeat_interleave(plan.q_block, -2)[:, :, : plan.q_len]
        extra = query @ pooled_key.mT * scale + plan.pooled.size.to(dtype).log()
        scores = torch.cat([scores, extra.masked_fill(~skipped, float("-inf"))], dim=-1)
        value = torch.cat([value, pooled_value], dim=2)
    return (scores.softmax(dim=-1) @ value).to(q.dtype)
