"""Attention under a block plan by gathering: real savings without a kernel.

Query blocks that read equally many tokens form a group; a group gathers its keys and values once
and runs through torch's own scaled-dot-product attention as one batch, a few blocks at a time so
that the gathered keys stay in cache. Runs on any device; made for CPUs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan

TOKENS_IN_CACHE = 16_384  # gathered keys at a time: 4 MiB at head_dim 64 in float32


class _Group(NamedTuple):
    """Query blocks with equally long lists, as flat rows of (batch, head, query block)."""

    rows: Tensor  # (R,) flat row numbers
    blocks: Tensor  # (R, count) whole key blocks
    q_size: int  # tokens in each of these query blocks
    has_tail: bool  # whether they also read the short last key block
    skipped: Tensor | None  # (R, N - count) key blocks that take part through their means


def cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float | None = None
) -> Tensor:
    """Attend as ``plan`` says, computing nothing else.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides, as are k and v.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute.
        scale: Score scale, ``head_dim ** -0.5`` when None.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype.
    """
    if int(plan.kv_count.min()) == plan.num_kv_blocks:  # nothing is skipped
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    batch, heads, _, head_dim = q.shape
    queries = _rows_of_blocks(q, plan.q_block)
    keys, values = (_rows_of_blocks(x, plan.kv_block) for x in (k, v))
    out = torch.empty_like(queries)
    for group in _groups(plan, batch, heads):
        tokens = group.blocks.shape[1] * plan.kv_block + group.q_size
        step = max(1, TOKENS_IN_CACHE // tokens)
        for start in range(0, len(group.rows), step):
            part = slice(start, start + step)
            rows = group.rows[part]
            key, value, bias = _gather(group, part, keys, values, plan)
            result = F.scaled_dot_product_attention(
                queries[rows, None, : group.q_size], key, value, attn_mask=bias, scale=scale
            )
            out[rows, : group.q_size] = result[:, 0]
    out = out.view(batch, heads, -1, head_dim)
    return out[:, :, : plan.q_len]


def _rows_of_blocks(x: Tensor, block: int) -> Tensor:
    """``(batch, heads, seq, head_dim)`` to zero-padded ``(batch * heads * blocks, block, head_dim)``."""
    padding = -x.shape[2] % block
    x = F.pad(x, (0, 0, 0, padding)) if padding else x
    return x.reshape(-1, block, x.shape[-1])


def _groups(plan: BlockPlan, batch: int, heads: int) -> Iterator[_Group]:
    """Sort the query blocks by how many tokens they read, and how many they have."""
    num_q, num_kv = plan.num_q_blocks, plan.num_kv_blocks
    mask = plan.to_block_mask().expand(batch, heads, num_q, num_kv).reshape(-1, num_kv)
    tail_size = plan.kv_len - (num_kv - 1) * plan.kv_block
    tail = mask[:, -1] if tail_size < plan.kv_block else torch.zeros_like(mask[:, -1])
    count = mask.sum(dim=-1) - tail.long()
    short_q = torch.arange(num_q, device=mask.device).eq(num_q - 1).repeat(batch * heads)
    label = (count * 2 + tail.long()) * 2 + short_q.long()
    for value in label.unique().tolist():
        rows = (label == value).nonzero()[:, 0]
        kept = mask[rows]
        has_tail = bool(value // 2 % 2)
        whole = kept.clone()
        if has_tail:
            whole[:, -1] = False
        yield _Group(
            rows=rows,
            blocks=whole.nonzero()[:, 1].view(len(rows), -1),
            q_size=plan.q_len - (num_q - 1) * plan.q_block if value % 2 else plan.q_block,
            has_tail=has_tail,
            skipped=(~kept).nonzero()[:, 1].view(len(rows), -1) if plan.pooled else None,
        )


def _gather(
    group: _Group, part: slice, keys: Tensor, values: Tensor, plan: BlockPlan
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values ``(rows, 1, tokens, head_dim)`` and, when pooled, the bias of each token."""
    head = group.rows[part, None] // plan.num_q_blocks  # which (batch, head) a row belongs to
    index = head * plan.num_kv_blocks + group.blocks[part]
    sides = [x[index].flatten(1, 2) for x in (keys, values)]
    if group.has_tail:
        tail = slice(0, plan.kv_len - (plan.num_kv_blocks - 1) * plan.kv_block)
        last = head[:, 0] * plan.num_kv_blocks + plan.num_kv_blocks - 1
        sides = [
            torch.cat([side, x[last, tail]], dim=1)
            for side, x in zip(sides, (keys, values), strict=True)
        ]
    bias = None
    if plan.pooled is not None and group.skipped is not None:
        exact = sides[0].shape[1]
        skipped = group.skipped[part]
        index = head * plan.num_kv_blocks + skipped
        means = (plan.pooled.key, plan.pooled.value)
        sides = [
            torch.cat([side, mean.flatten(0, 2)[index].to(side.dtype)], dim=1)
            for side, mean in zip(sides, means, strict=True)
        ]
        bias = F.pad(plan.pooled.size.log()[skipped], (exact, 0)).to(keys.dtype)[:, None, None]
    return sides[0][:, None], sides[1][:, None], bias
