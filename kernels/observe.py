"""Attention that also reports what it saw of each block, for methods that learn from it.

LiteAttention (arXiv 2511.11062) drops a block when none of its scores came near the running
maximum of its row; AdaSpa (arXiv 2502.21079) ranks blocks by their mass.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import BlockPlan, block_of_token
from vidsparse.kernels.reference import reference_attention, scores_and_values


class Observed(NamedTuple):
    """Attention and, for each listed block, what was seen of it.

    Attributes:
        out: ``(batch, heads, q_len, head_dim)``.
        lse: Log-sum-exp of each row, float32 ``(batch, heads, q_len)``.
        margin: Largest lead, over the rows of the query block, of a score of this key block over
            the row's maximum so far in list order; natural units, float32 ``(batch, heads, M,
            K)``. ``inf`` for the first block that has a key, ``-inf`` for one without keys.
        mass: Log of the sum of ``exp(score)`` over all pairs of the block, same shape. Entries
            after the count hold nothing.
    """

    out: Tensor
    lse: Tensor
    margin: Tensor
    mass: Tensor


def observe_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_length: Tensor | None = None,
    impl: str = "auto",
) -> Observed:
    """Attend as ``plan`` says and report on each listed block.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: Of equal blocks of at most 128 tokens, without pooled stand-ins.
        scale: Score scale, ``head_dim ** -0.5`` when None.
        key_length: Keys that exist in each batch entry, int32 ``(batch,)``.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Raises:
        BadInputError: For a plan of unequal or larger blocks, or with pooled stand-ins.
    """
    if impl not in ("auto", "triton", "reference"):
        raise BadInputError(f"unknown impl {impl!r}: choose auto, triton or reference")
    if plan.q_offsets is not None or plan.kv_offsets is not None or plan.pooled is not None:
        raise BadInputError("observing needs equal blocks and no pooled stand-ins")
    if max(plan.q_block, plan.kv_block) > 128:
        raise BadInputError(
            f"observing needs blocks of at most 128 tokens, got {plan.q_block} x {plan.kv_block}"
        )
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if impl == "triton" or (impl == "auto" and q.is_cuda):
        from vidsparse.kernels.triton.portable import launch

        out, lse, margin, mass = launch(q, k, v, plan, scale, key_length, True, with_stats=True)
        assert lse is not None
        assert margin is not None
        assert mass is not None
        return Observed(out, lse, margin, mass)
    return _observe_reference(q, k, v, plan, scale, key_length)


def _observe_reference(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float, key_length: Tensor | None
) -> Observed:
    out, lse = reference_attention(
        q, k, v, plan, scale=scale, key_length=key_length, return_lse=True
    )
    scores, _ = scores_and_values(q, k, v, plan, scale, key_length)
    rows = block_of_token(plan.q_len, plan.q_block, None, plan.q_order).to(q.device)
    rows = rows.expand(*q.shape[:3])
    running = torch.full(q.shape[:3], float("-inf"), dtype=scores.dtype, device=q.device)
    margins, masses = [], []
    for n in range(plan.kv_index.shape[-1]):
        listed = (n < plan.kv_count)[..., None]
        one = dataclasses.replace(
            plan, kv_count=listed[..., 0].int(), kv_index=plan.kv_index[..., n : n + 1]
        )
        tile = scores.masked_fill(~one.to_dense_mask(), float("-inf"))
        highest = tile.amax(dim=-1)
        lead = (highest - running).where(highest.isfinite(), float("-inf"))
        margins.append(_reduce_rows(lead, rows, plan.num_q_blocks, "amax"))
        top = _reduce_rows(highest, rows, plan.num_q_blocks, "amax")
        safe = top.where(top.isfinite(), 0)
        weights = (tile - safe.gather(-1, rows)[..., None]).exp().sum(dim=-1)
        masses.append(_reduce_rows(weights, rows, plan.num_q_blocks, "sum").log() + safe)
        running = running.maximum(highest)
    margin, mass = (torch.stack(x, dim=-1).float() for x in (margins, masses))
    return Observed(out, lse.float(), margin, mass)


def _reduce_rows(x: Tensor, rows: Tensor, blocks: int, how: str) -> Tensor:
    """Reduce ``(batch, heads, q_len)`` to ``(batch, heads, M)`` by the block of each row."""
    start = x.new_full((*x.shape[:2], blocks), float("-inf") if how == "amax" else 0.0)
    return start.scatter_reduce(-1, rows, x, reduce=how)
