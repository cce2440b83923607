"""Each token of queries picks its own blocks of keys, as VMoBA does: arXiv 2506.23858."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, block_of_token
from vidsparse.kernels.planning.select import Lists
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.lists import lists_of_mask
from vidsparse.policies.selectors import OfShare, Selection
from vidsparse.policies.work import Kernel, Work

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

AT_ONCE = 1 << 26  # scores of tokens held at a time: 256 MiB
PICKED = "picked by tokens"
GATHERED = 1 << 29  # numbers of queries that are copied at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(OfShare):
    """Blocks of keys by each query token: its own, then the most similar up to a share.

    Similarities of a token, ``q . mean(k)`` as they are, are moved to [0, 1] by the smallest and
    the largest over all blocks of video. Its own block is in; others follow, the most similar
    first, until all that are in hold ``p`` of the sum, and one follows in any case. Under a density
    it is the same number of blocks for every token. What is computed are the pairs of tokens and
    their blocks; a plan, which knows blocks of queries alone, shows all that any of them picked.

    Attributes:
        p: Share of the sum of similarities, in (0, 1]; a density replaces it.
    """

    p: float | None = 0.25

    takes_ranks: ClassVar[bool] = True
    reuses_plans: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    fixed: ClassVar[frozenset[str]] = frozenset({"floor", "rotate"})

    def refuses(self, policy: Policy) -> str | None:
        """It asks the estimator for tokens, and no plan says what it runs."""
        if not policy.estimator.scores_tokens:
            return "selector=tokens asks for the similarity of tokens: use estimator=pooled"
        if policy.floor or policy.rotate or policy.compensation.compensates:
            return "selector=tokens runs without floor, rotate and compensation: leave them out"
        return None

    def select(self, these: Selection) -> Lists:
        """All blocks that any token of a block of queries picked."""
        inputs, blocks = these.inputs, these.inputs.blocks
        number = blocks.rows
        batch, heads = inputs.qkv[0].shape[:2]
        keep = torch.zeros(batch, heads, number, blocks.columns, device=blocks.device)
        rows, picked = self._rows(inputs), []
        for at, chosen in self._choices(inputs, these.way):
            picked.append(chosen)
            index = rows[at].expand(batch, heads, -1)[..., None].expand(chosen.shape)
            keep = keep.scatter_add(2, index, chosen.float())
        inputs.told[PICKED] = torch.cat(picked, dim=2)  # for ``attend``, which comes next
        return lists_of_mask((keep > 0) | these.always, these.least)

    def attend(self, work: Work, kernel: Kernel, *, way: float) -> tuple[Tensor, Tensor]:
        """Run each block of keys for the queries that picked it, and merge by log-sum-exp.

        Returns:
            The output, ``(batch, heads, seq, head_dim)`` in the plan's order, and what was computed
            less than the plan shows, as a density of each head.
        """
        inputs = work.inputs
        q, k, v = inputs.qkv
        chosen = inputs.told.pop(PICKED, None)
        if chosen is None:  # a plan of an earlier pass, with queries and keys of its own
            with torch.no_grad():
                chosen = torch.cat([each for _, each in self._choices(inputs, way)], dim=2)
        most = chosen.sum(dim=(2, 3)).amax(dim=0).tolist()  # of each head; waits for the device
        some = max(1, GATHERED // (q.shape[0] * max(most) * q.shape[3]))
        outs = []
        for first in range(0, q.shape[1], some):
            at = slice(first, first + some)
            some_q, some_k, some_v = (x[:, at] for x in (q, k, v))
            outs.append(
                attend_each(some_q, some_k, some_v, chosen[:, at], max(most[at]), inputs, kernel)
            )
        out = torch.cat(outs, dim=1)
        pairs = (chosen * inputs.blocks.kv_sizes).sum(dim=(2, 3)) / q.shape[2] ** 2
        return out, pairs - work.plan.head_density()

    def _choices(self, inputs: Inputs, way: float) -> Iterator[tuple[slice, Tensor]]:
        """Which blocks tokens pick, by runs of tokens, boolean ``(batch, heads, tokens, N)``."""
        blocks, q = inputs.blocks, inputs.qkv[0]
        own, video = self._rows(inputs), blocks.video_columns
        end = blocks.grid.prefix + blocks.grid.video_tokens
        step = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * blocks.columns))
        for first in range(0, q.shape[2], step):
            at = slice(first, min(first + step, q.shape[2]))
            scores = inputs.tokens(at)[..., video]
            is_own = own[at, None] - video.start == torch.arange(scores.shape[-1], device=q.device)
            picked = self._picked(scores, is_own, inputs.density, way)
            chosen = torch.ones(
                *picked.shape[:3], blocks.columns, dtype=torch.bool, device=q.device
            )
            chosen[..., video] = picked
            token = torch.arange(at.start, at.stop, device=q.device)
            text = (token < blocks.grid.prefix) | (token >= end)
            yield at, chosen | text[:, None]

    def _picked(self, scores: Tensor, own: Tensor, density: float | None, way: float) -> Tensor:
        """The rule, boolean of the shape of the scores, ``(batch, heads, tokens, blocks)``."""
        low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
        moved = (scores - low) / (high - low).clamp(min=1e-20)
        order = moved.masked_fill(own, 2.0).argsort(dim=-1, descending=True, stable=True)
        if density is not None:
            number = round((1 - way * (1 - density)) * scores.shape[-1])
            kept = torch.arange(scores.shape[-1], device=scores.device) < max(1, number)
            kept = kept.expand(scores.shape)
        else:
            assert self.p is not None
            share = 1 - way * (1 - self.p)
            total = moved.sum(dim=-1, keepdim=True).clamp(min=1e-20)
            sizes = moved.gather(-1, order) / total
            before = sizes.cumsum(dim=-1) - sizes  # of all that are in, its own among them
            kept = (before < share - 1e-6) | (share >= 1)  # all of it is also the least similar
            kept[..., :2] = True
        return torch.zeros_like(kept).scatter(-1, order, kept)

    @staticmethod
    def _rows(inputs: Inputs) -> Tensor:
        """The block of queries of each position, int64 ``(seq,)``."""
        blocks = inputs.blocks
        size = blocks.grid.tokens, blocks.block
        return block_of_token(*size, blocks.q_offsets, device=blocks.device)[0, 0]


def attend_each(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, most: int, inputs: Inputs, kernel: Kernel
) -> Tensor:
    """Attention of every token to the blocks that it picked, ``(batch, heads, seq, head_dim)``.

    Queries are copied once for each block that they picked, block after block, and one launch runs
    each block of keys for its own.

    Args:
        q: ``(batch, heads, seq, head_dim)``.
        k: Likewise.
        v: Likewise.
        chosen: Boolean ``(batch, heads, seq, N)``.
        most: The highest number of picks of a head.
        inputs: Of the call, for its blocks of keys.
        kernel: Runs block plans.
    """
    batch, heads, tokens, number = chosen.shape
    counts = chosen.sum(dim=2)  # (B, H, N)
    there = torch.arange(most, device=q.device) < counts.sum(dim=-1, keepdim=True)
    token = listed_tokens(chosen, counts.sum(dim=-1), most)
    ends = counts.cumsum(dim=-1)
    offsets = torch.cat(
        [torch.zeros_like(ends[..., :1]), ends, torch.full_like(ends[..., :1], most)], -1
    )
    keep = torch.eye(number + 1, number, dtype=torch.bool, device=q.device)
    keep[number, 0] = True  # what only fills the last block reads anything
    plan = BlockPlan.from_mask(
        keep.expand(batch, heads, -1, -1), q_len=most, kv_len=tokens, q_block=inputs.blocks.block,
        kv_block=inputs.blocks.kv_block, q_offsets=offsets.int().contiguous(),
        kv_offsets=inputs.blocks.kv_starts.expand(batch, heads, -1).contiguous(),
    )  # fmt: skip
    rows = token[..., None].expand(-1, -1, -1, q.shape[3])
    out, lse = kernel(q.gather(2, rows), k, v, plan, return_lse=True)
    lse = lse.float().masked_fill(~there, float("-inf"))
    highest = torch.full((batch, heads, tokens), float("-inf"), device=q.device)
    highest = highest.scatter_reduce(2, token, lse.detach(), "amax")
    weight = (lse - highest.gather(2, token)).exp().masked_fill(~there, 0.0)
    total = torch.zeros_like(highest).scatter_add(2, token, weight)
    weighed = out.float().masked_fill(~there[..., None], 0.0) * weight[..., None]
    made = torch.zeros(q.shape, device=q.device).scatter_add(2, rows, weighed)
    return (made / total[..., None]).to(q.dtype)


def listed_tokens(chosen: Tensor, counts: Tensor, most: int) -> Tensor:
    """The tokens of each block, block after block, int64 ``(batch, heads, most)``; then any.

    Args:
        chosen: Boolean ``(batch, heads, seq, N)``.
        counts: True entries of each head, int64 ``(batch, heads)``.
        most: The highest of them.
    """
    tokens, number = chosen.shape[2:]
    flat = chosen.mT.flatten().nonzero()[:, 0]
    head = flat // (tokens * number)
    before = counts.flatten().cumsum(dim=0) - counts.flatten()
    place = torch.arange(len(flat), device=flat.device) - before[head]
    listed = (torch.arange(most, device=flat.device) % tokens).repeat(counts.numel(), 1)
    return listed.index_put_((head, place), flat % tokens).view(*counts.shape, most)
