"""The exact attention of a few query rows, and from it the true error of a candidate plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from vidsparse.kernels.plan import block_of_token
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged

AT_ONCE = 1 << 26  # scores held at a time: 256 MiB


def draw_rows(inputs: Inputs, number: int) -> Tensor:
    """Query rows drawn at random, one from each of equally many stretches, int64 ``(R,)``.

    Args:
        inputs: The call; each layer and step draws others.
        number: How many, at most as many as there are tokens.
    """
    tokens = inputs.blocks.grid.tokens
    number = min(number, tokens)
    generator = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
    place = torch.arange(number) + torch.rand(number, generator=generator)
    rows = (place * (tokens / number)).long().clamp(max=tokens - 1)
    return rows.to(inputs.blocks.device, non_blocking=True)


def shares_of_rows(inputs: Inputs, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Exact attention of some rows to every token, in parts that fit into memory.

    Args:
        inputs: The call.
        rows: Which, int64 ``(R,)``.

    Yields:
        Some of the rows, and their shares, float32 ``(batch, heads, rows, seq)``.
    """
    q, k, _ = inputs.qkv
    for part in rows.split(max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))):
        scores = only_finite(q.index_select(2, part)) @ k.mT
        yield part, scores.float().mul_(inputs.scale).softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class Samples:
    """Query rows drawn at random, one from each of equally many stretches of the sequence.

    Attributes:
        rows: Which tokens, in raster order, int64 ``(R,)``.
        query: Their queries, ``(batch, heads, R, head_dim)``.
        share: Exact attention of each row to every token, ``(batch, heads, R, seq)``, in the dtype
            of the values: at a real size it is the largest tensor here by far.
        lse: Log-sum-exp of each row's scores, float32 ``(batch, heads, R, 1)``.
        value: Of every token, ``(batch, heads, seq, head_dim)``, in raster order.
    """

    rows: Tensor
    query: Tensor
    share: Tensor
    lse: Tensor
    value: Tensor

    @classmethod
    def draw(cls, inputs: Inputs, number: int) -> Samples:
        """Attend from a few rows.

        Args:
            inputs: In raster order.
            number: How many rows.
        """
        return cls.at(inputs, draw_rows(inputs, number))

    @classmethod
    def at(cls, inputs: Inputs, rows: Tensor) -> Samples:
        """Attend from these rows, int64 ``(R,)`` in raster order."""
        q, k, v = inputs.qkv
        query = only_finite(q[:, :, rows])
        scores = (query @ k.mT).float() * inputs.scale
        lse = scores.logsumexp(dim=-1, keepdim=True)
        return cls(rows, query, (scores - lse).exp_().to(v.dtype), lse, v)

    @cached_property
    def out(self) -> Tensor:
        """Exact output of the rows, float32 ``(batch, heads, R, head_dim)``."""
        total = self.share.sum(dim=-1, keepdim=True, dtype=torch.float32)
        return (self.share @ self.value).float() / total

    def under(self, arranged: Arranged, *, centroids: bool) -> Candidate:
        """Where the rows and tokens stand in an order.

        Args:
            arranged: The call in that order.
            centroids: Whether skipped blocks attend through their means.
        """
        inputs, blocks = arranged.inputs, arranged.inputs.blocks
        where = partial(block_of_token, blocks.grid.tokens, device=self.rows.device)
        q_block = where(blocks.block, blocks.q_offsets, arranged.q_order)
        kv_block = where(blocks.kv_block, blocks.kv_offsets, arranged.kv_order)
        shape = self.share.shape[:2]
        stand_ins = None
        if centroids:
            scores = self.query.float() @ inputs.k_means.mT * inputs.scale
            scores = scores + blocks.kv_sizes.log().unsqueeze(-2) - self.lse
            stand_ins = scores.exp(), inputs.v_means
        return Candidate(
            samples=self,
            row_block=q_block[..., self.rows].expand(*shape, -1),
            token_block=kv_block.expand(*shape, -1),
            stand_ins=stand_ins,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """Sampled rows under one order.

    Attributes:
        samples: The rows.
        row_block: The query block of each row, int64 ``(batch, heads, R)``.
        token_block: The key block of each token in raster order, int64 ``(batch, heads, seq)``.
        stand_ins: What each key block would weigh through its mean key, ``(batch, heads, R, N)``,
            relative to all exact keys, and its mean value, ``(batch, heads, N, head_dim)``; None
            if skipped blocks get no attention.
    """

    samples: Samples
    row_block: Tensor
    token_block: Tensor
    stand_ins: tuple[Tensor, Tensor] | None

    def recall(self, keep: Tensor) -> Tensor:
        """Share of the mass that these blocks hold, mean over rows, ``(batch, heads)``.

        Args:
            keep: Boolean ``(B|1, H|1, M, N)``.
        """
        share = self.samples.share
        keep = keep.expand(*share.shape[:2], -1, -1)
        kept = keep.gather(2, self.row_block[..., None].expand(*share.shape[:3], keep.shape[-1]))
        tokens = kept.gather(3, self.token_block[:, :, None].expand(share.shape))
        held = (share * tokens).sum(dim=-1, dtype=torch.float32)
        return (held / share.sum(dim=-1, dtype=torch.float32)).mean(dim=-1)

    def error(self, keep: Tensor) -> Tensor:
        """Squared error of the output if only these blocks are kept, mean over rows.

        Args:
            keep: Boolean ``(B|1, H|1, M, N)``.

        Returns:
            ``(batch, heads)``.
        """
        share = self.samples.share
        keep = keep.expand(*share.shape[:2], -1, -1)
        index = self.row_block[..., None].expand(*self.row_block.shape, keep.shape[-1])
        kept = keep.gather(2, index)
        kept_tokens = kept.gather(3, self.token_block[:, :, None].expand(share.shape))
        share = share * kept_tokens
        total = share.sum(dim=-1, keepdim=True, dtype=torch.float32)
        out = (share @ self.samples.value).float()
        if self.stand_ins is not None:
            mass, value = self.stand_ins
            mass = mass * ~kept
            total = total + mass.sum(dim=-1, keepdim=True)
            out = out + mass @ value
        return (out / total.clamp(min=1e-20) - self.samples.out).square().sum(dim=-1).mean(dim=-1)
