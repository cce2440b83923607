"""Gradients of attention under a block plan, so that LoRA can be trained with a mask.

With p the attention weights, recomputed from the log-sum-exp, and g the gradient of the output:

    dv = pᵀ g,   ds = p * (g vᵀ - rowsum(g * out)),   dq = scale * ds k,   dk = scale * dsᵀ q

A gradient h of the log-sum-exp itself adds ``p * h`` to ds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.engines.cpu_backward import backward_gathered
from vidsparse.kernels.engines.reference import scores_and_values, skipped_blocks
from vidsparse.kernels.plan import BlockPlan

SCORES_AT_ONCE = 16 * 2**20  # of the pooled part: 64 MiB in float32


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    grad_lse: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through the listed blocks.

    Args:
        grad_out: Gradient of the output, ``(batch, heads, q_len, head_dim)``.
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        out: What the forward gave, pooled stand-ins included.
        lse: Its log-sum-exp, ``(batch, heads, q_len)``, pooled stand-ins included.
        plan: What was computed.
        scale: Score scale.
        grad_lse: Gradient of the log-sum-exp, ``(batch, heads, q_len)``; None for zero.
        impl: "triton", "cpu" (which runs anywhere), "reference", or "auto": Triton on CUDA for
            whole blocks of equal size, else "cpu".

    Returns:
        Gradients of q, k and v, laid out like them.

    Raises:
        BadInputError: For another ``impl``, or Triton by name where blocks are of unequal size or
            partial.
    """
    unequal = plan.q_offsets is not None or plan.kv_offsets is not None
    able = not unequal and plan.partial is None and q.dtype != torch.float64
    triton = use_triton(impl, q, able=able, besides=("cpu",))
    if triton and unequal:
        raise BadInputError("the Triton backward needs blocks of equal size: use impl='cpu'")
    if triton and plan.partial is not None:
        raise BadInputError("the Triton backward needs whole blocks: use impl='cpu'")
    delta = (grad_out.to(wide := _wide(q)) * out.to(wide)).sum(dim=-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    if triton:
        from vidsparse.kernels.triton.backward import launch

        return launch(grad_out, q, k, v, delta, lse, plan, scale)
    if impl in ("auto", "cpu"):
        finite = _finite(lse.to(wide))
        return backward_gathered(grad_out, q, k, v, delta, finite, plan, scale)
    return _backward_reference(grad_out, q, k, v, delta, lse, plan, scale)


def _backward_reference(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    scores, _ = scores_and_values(q, k, v, plan, scale)
    scores = scores[..., : plan.kv_len]
    g, query, key, value = (x.to(scores.dtype) for x in (grad_out, q, k, v))
    p = (scores - _finite(lse.to(scores.dtype))[..., None]).exp()
    ds = p * (g @ value.mT - delta[..., None])
    grads = (scale * ds @ key, scale * ds.mT @ query, p.mT @ g)
    return tuple(torch.empty_like(x).copy_(y) for x, y in zip((q, k, v), grads, strict=True))  # pyright: ignore


def pooled_backward(
    grad_out: Tensor,
    q: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through the pooled stand-ins, in plain torch, some query blocks at a time.

    Returns:
        What they add to the gradient of q, and the gradients of ``plan.pooled.key`` and
        ``plan.pooled.value``; in float32 (float64 for float64 input).
    """
    assert plan.pooled is not None
    dtype = _wide(q)
    key, value, size = (x.to(dtype) for x in (plan.pooled.key, plan.pooled.value, plan.pooled.size))
    skipped = skipped_blocks(plan)
    dq = torch.empty(q.shape, dtype=dtype, device=q.device)
    dkey, dvalue = (
        torch.zeros(x.shape, dtype=dtype, device=x.device).expand(*q.shape[:2], -1, -1).clone()
        for x in (key, value)
    )
    rows = max(1, SCORES_AT_ONCE // (q.shape[0] * q.shape[1] * key.shape[2]))
    for start in range(0, q.shape[2], rows):
        at = slice(start, start + rows)
        query, g = q[:, :, at].to(dtype), grad_out[:, :, at].to(dtype)
        delta = (g * out[:, :, at].to(dtype)).sum(dim=-1, keepdim=True)
        if grad_lse is not None:
            delta = delta - grad_lse[:, :, at, None]
        scores = query @ key.mT * scale + size.log().unsqueeze(-2)
        scores = scores.masked_fill(~skipped[:, :, at], float("-inf"))
        p = (scores - _finite(lse[:, :, at].to(dtype))[..., None]).exp()
        ds = p * (g @ value.mT - delta)
        dq[:, :, at] = scale * ds @ key
        dkey += scale * ds.mT @ query
        dvalue += p.mT @ g
    return dq, _sum_to(dkey, key), _sum_to(dvalue, value)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _finite(lse: Tensor) -> Tensor:
    """A row without keys has no weights: any finite number will do."""
    return lse.where(lse.isfinite(), 0)


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum_to_size(like.shape)
