"""The backward pass by gathering the keys of one query block at a time: made for CPUs.

What a plan skips costs nothing, and no more scores exist at once than those of one query block, of
any size. On a GPU it serves blocks of unequal size, block after block.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


def backward_gathered(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out like them.

    Arguments as in ``attention_backward``; ``delta`` is the product of output and gradient in each
    row, less the gradient of its log-sum-exp, and ``lse`` is finite.
    """
    batch, heads = q.shape[:2]
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    index = plan.kv_index.long().expand(batch, heads, -1, -1)
    counts = plan.kv_count.expand(batch, heads, -1).tolist()
    rows = _edges(plan.q_offsets, plan.q_len, plan.q_block, q).expand(batch, heads, -1).tolist()
    starts = _edges(plan.kv_offsets, plan.kv_len, plan.kv_block, q).expand(batch, heads, -1)
    patterns = None if plan.partial is None else plan.partial.pattern.expand(batch, heads, -1, -1)
    for b in range(batch):
        for h in range(heads):
            tensors = [x[b, h].to(lse.dtype) for x in (grad_out, q, k, v, delta, lse)]
            head = _Head(scale, *tensors)
            sizes = starts[b, h].diff()
            for m, (first, stop) in enumerate(pairwise(rows[b][h])):
                if not counts[b][h][m] or first == stop:
                    continue
                listed = index[b, h, m, : counts[b][h][m]]
                tokens = _tokens(starts[b, h][listed], sizes[listed])
                seen = None
                if patterns is not None:  # a short block is the last of its list
                    seen = plan.pairs_of(patterns[b, h, m, : len(listed)].long())
                    seen = seen[: stop - first, : len(tokens)]
                head.add(slice(first, stop), tokens, seen)
            dq[b, h], dk[b, h], dv[b, h] = head.grads
    return dq, dk, dv


class _Head:
    """One head: its tensors, ``(seq, head_dim)``, and the sums of their gradients."""

    def __init__(
        self, scale: float, g: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, lse: Tensor
    ) -> None:
        self._g, self._q, self._k, self._v = g, q, k, v
        self._delta, self._lse, self._scale = delta[:, None], lse[:, None], scale
        self.grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    def add(self, rows: slice, tokens: Tensor, seen: Tensor | None = None) -> None:
        """The part of one query block and the keys that it reads, or those pairs that are seen."""
        g, q, key, value = self._g[rows], self._q[rows], self._k[tokens], self._v[tokens]
        p = torch.addmm(self._lse[rows], q, key.mT, beta=-1, alpha=self._scale)
        p = (p if seen is None else p.masked_fill_(~seen, -torch.inf)).exp_()
        dq, dk, dv = self.grads
        dv.index_add_(0, tokens, p.mT @ g)
        ds = p.mul_(torch.addmm(self._delta[rows], g, value.mT, beta=-1)).mul_(self._scale)
        dq[rows] = ds @ key
        dk.index_add_(0, tokens, ds.mT @ q)


def _edges(offsets: Tensor | None, length: int, block: int, like: Tensor) -> Tensor:
    """Where blocks start, and where the last one ends, int64 ``(B|1, H|1, blocks + 1)``."""
    if offsets is not None:
        return offsets.long()
    number = -(-length // block)
    starts = torch.arange(number + 1, device=like.device) * block
    return starts.clamp(max=length)[None, None]


def _tokens(first: Tensor, size: Tensor) -> Tensor:
    """The tokens of runs, one run after another."""
    ends = size.cumsum(0)
    shift = (first - ends + size).repeat_interleave(size)
    return shift + torch.arange(len(shift), device=first.device)
