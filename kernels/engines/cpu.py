"""Attention under a block plan by gathering: real savings without a kernel.

Query blocks that read equally many tokens form a group; a group gathers its keys and values once
and runs through torch's own scaled-dot-product attention as one batch, many blocks at a time: every
batch ends with a wait for all threads. Blocks of unequal size run one by one. Runs on any device;
made for CPUs on which ``native`` cannot be compiled.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.kernels.engines.cpu_clusters import attend_clusters
from vidsparse.kernels.plan import BlockPlan

CPU_TOKENS = 131_072  # keys gathered for one batch: fewer would stay in cache, and wait more often
ACCELERATOR_TOKENS = 524_288  # there, launches cost more than cache misses


class _Group(NamedTuple):
    """Query blocks with equally long lists, as flat rows of (batch, head, query block)."""

    rows: Tensor  # (R,) flat row numbers
    blocks: Tensor  # (R, count) whole key blocks
    q_size: int  # tokens in each of these query blocks
    has_tail: bool  # whether they also read the short last key block
    skipped: Tensor | None  # (R, N - count) key blocks that take part through their means
    patterns: Tensor | None  # (R, count) of these blocks and, last, of the tail; None if whole

    def part(self, rows: slice) -> "_Group":
        """Some of the rows."""
        skipped, patterns = (x if x is None else x[rows] for x in (self.skipped, self.patterns))
        return self._replace(
            rows=self.rows[rows], blocks=self.blocks[rows], skipped=skipped, patterns=patterns
        )

    def tokens(self, plan: BlockPlan) -> int:
        """About how many tokens a row reads, pooled stand-ins among them."""
        means = 0 if self.skipped is None else self.skipped.shape[1]
        return (self.blocks.shape[1] + self.has_tail) * plan.kv_block + means


def cpu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says, computing nothing else.

    Arguments and result as in ``reference_attention``. Reads list lengths back from
    the device.
    """
    if plan.q_offsets is not None or plan.kv_offsets is not None:
        attend = _with_lse if return_lse else _without_lse
        out, lse = attend_clusters(q, k, v, plan, scale=scale, attend=attend)
        return out, lse if return_lse else None
    skips = plan.partial is not None or int(plan.kv_count.min()) < plan.num_kv_blocks
    if not return_lse and not skips:
        return F.scaled_dot_product_attention(q, k, v, scale=scale), None
    batch, heads, _, head_dim = q.shape
    queries = _rows_of_blocks(q, plan.q_block)
    sides = [_Side.of(x, plan, mean) for x, mean in ((k, "key"), (v, "value"))]
    weight = _log_sizes(plan, batch, heads)
    out = torch.zeros_like(queries)
    lse = queries.new_full(queries.shape[:2], -torch.inf, dtype=_wide(q.dtype))
    at_once = CPU_TOKENS if q.device.type == "cpu" else ACCELERATOR_TOKENS
    for group in _groups(plan, batch, heads):
        if not group.tokens(plan):  # these rows read nothing
            continue
        step = max(2, at_once // group.tokens(plan))
        for start in range(0, len(group.rows), step):
            part = group.part(slice(start, start + step))
            key, value = (side.gather(part, plan) for side in sides)
            query = queries[part.rows, None, : part.q_size]
            bias = _bias(part, plan, key, weight)
            seen = None if part.patterns is None else _seen(part, plan, key.shape[1])
            if seen is not None:
                bias = _only(seen, bias, key.dtype)
            attend = _with_lse if return_lse else _without_lse
            result, rows = attend(query, key[:, None], value[:, None], bias, scale)
            if seen is not None:  # a row that sees no key is zero
                result = result.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)
            out[part.rows, : part.q_size] = result[:, 0]
            if rows is not None:
                lse[part.rows, : part.q_size] = rows[:, 0]
    out = out.view(batch, heads, -1, head_dim)[:, :, : plan.q_len]
    lse = lse.view(batch, heads, -1)[:, :, : plan.q_len]
    return out, lse if return_lse else None


def _without_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale), None


def _with_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same in plain products, which also give the log-sum-exp."""
    wide = _wide(q.dtype)
    scores = q.to(wide) @ k.to(wide).mT * scale
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.where(lse.isfinite(), 0)[..., None]).exp()
    return (weights @ v.to(wide)).to(q.dtype), lse


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows_of_blocks(x: Tensor, block: int) -> Tensor:
    """Cut ``(batch, heads, seq, head_dim)`` into zero-padded ``(rows, block, head_dim)``."""
    padding = -x.shape[2] % block
    x = F.pad(x, (0, 0, 0, padding)) if padding else x
    return x.reshape(-1, block, x.shape[-1])


def _groups(plan: BlockPlan, batch: int, heads: int) -> Iterator[_Group]:
    """Sort the query blocks by how many tokens they read, and how many they have."""
    num_q, num_kv = plan.num_q_blocks, plan.num_kv_blocks
    mask = plan.to_block_mask().expand(batch, heads, num_q, num_kv).reshape(-1, num_kv)
    tail = mask[:, -1] & (_tail_size(plan) < plan.kv_block)
    count = mask.sum(dim=-1) - tail.long()
    pattern = None
    if plan.partial is not None:
        pattern = plan.pattern_of_blocks().long().expand(batch, heads, num_q, num_kv).flatten(0, 2)
    short_q = torch.arange(num_q, device=mask.device).eq(num_q - 1).repeat(batch * heads)
    label = (count * 2 + tail.long()) * 2 + short_q.long()
    for value in label.unique().tolist():
        rows = (label == value).nonzero()[:, 0]
        kept = mask[rows]
        has_tail = bool(value // 2 % 2)
        whole = kept.clone()
        if has_tail:
            whole[:, -1] = False
        listed = kept.nonzero()[:, 1].view(len(rows), -1)
        yield _Group(
            rows=rows,
            blocks=whole.nonzero()[:, 1].view(len(rows), -1),
            q_size=plan.q_len - (num_q - 1) * plan.q_block if value % 2 else plan.q_block,
            has_tail=has_tail,
            skipped=(~kept).nonzero()[:, 1].view(len(rows), -1) if plan.pooled else None,
            patterns=None if pattern is None else pattern[rows].gather(1, listed),
        )


class _Side:
    """The keys or the values, cut into blocks, with scratch memory to gather them into.

    Fresh memory for every batch would cost more than the copy itself.
    """

    def __init__(self, blocks: Tensor, means: Tensor | None) -> None:
        self._blocks = blocks  # (batch * heads * N, kv_block * head_dim)
        self._means = means  # (batch * heads * N, head_dim)
        self._scratch = blocks.new_empty(0)

    @classmethod
    def of(cls, x: Tensor, plan: BlockPlan, mean: str) -> "_Side":
        means = None if plan.pooled is None else getattr(plan.pooled, mean).to(x.dtype)
        return cls(
            _rows_of_blocks(x, plan.kv_block).flatten(1),
            None if means is None else means.flatten(0, 2),
        )

    def gather(self, group: _Group, plan: BlockPlan) -> Tensor:
        """What a group reads, ``(rows, tokens, head_dim)``; valid until the next call."""
        first = group.rows[:, None] // plan.num_q_blocks * plan.num_kv_blocks
        index = (first + group.blocks).flatten()
        whole = self._blocks.index_select(0, index) if self._needs_grad else self._select(index)
        head_dim = self._blocks.shape[1] // plan.kv_block
        parts = [whole.view(len(group.rows), group.blocks.shape[1] * plan.kv_block, head_dim)]
        if group.has_tail:
            last = self._blocks[first[:, 0] + plan.num_kv_blocks - 1]
            parts.append(last.unflatten(1, (-1, head_dim))[:, : _tail_size(plan)])
        if self._means is not None and group.skipped is not None:
            parts.append(self._means[first + group.skipped])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @property
    def _needs_grad(self) -> bool:
        return torch.is_grad_enabled() and self._blocks.requires_grad

    def _select(self, index: Tensor) -> Tensor:
        needed = len(index) * self._blocks.shape[1]
        if self._scratch.numel() < needed:
            self._scratch = self._blocks.new_empty(needed)
        out = self._scratch[:needed].view(len(index), self._blocks.shape[1])
        return torch.index_select(self._blocks, 0, index, out=out)


def _log_sizes(plan: BlockPlan, batch: int, heads: int) -> Tensor | None:
    """``ln(size)`` of each pooled block, ``(batch * heads, N)``."""
    if plan.pooled is None:
        return None
    return plan.pooled.size.log().expand(batch, heads, -1).flatten(0, 1)


def _bias(group: _Group, plan: BlockPlan, key: Tensor, weight: Tensor | None) -> Tensor | None:
    """``ln(size)`` on the columns that stand for skipped blocks, ``(rows, 1, 1, tokens)``."""
    if weight is None or group.skipped is None:
        return None
    head = group.rows[:, None] // plan.num_q_blocks
    # in bf16 or fp16, torch's attention wants the bias in that dtype too
    weight = weight[head, group.skipped].to(key.dtype)
    return F.pad(weight, (key.shape[1] - weight.shape[1], 0))[:, None, None]


def _seen(group: _Group, plan: BlockPlan, columns: int) -> Tensor:
    """Which pairs are computed, boolean ``(rows, 1, q_size, columns)``: means are seen by all."""
    assert group.patterns is not None
    tail = plan.kv_block - _tail_size(plan) if group.has_tail else 0
    seen = plan.pairs_of(group.patterns)[:, : group.q_size]
    seen = seen[..., : seen.shape[-1] - tail]
    return F.pad(seen, (0, columns - seen.shape[-1]), value=True)[:, None]


def _only(seen: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias, and ``-inf`` for pairs that are not seen."""
    bias = torch.zeros((), dtype=dtype, device=seen.device) if bias is None else bias
    return torch.where(seen, bias, -torch.inf)


def _tail_size(plan: BlockPlan) -> int:
    return plan.kv_len - (plan.num_kv_blocks - 1) * plan.kv_block
