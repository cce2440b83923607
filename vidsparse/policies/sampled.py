"""The true error of a candidate plan on a few query rows, from their exact attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.policies.estimator import Inputs


@dataclass(frozen=True, eq=False)
class Samples:
    """Query rows drawn at random, one from each of equally many stretches of the sequence.

    Attributes:
        rows: Which tokens, in raster order, int64 ``(R,)``.
        share: Exact attention of each row to every token, float32 ``(batch, heads, R, seq)``.
        out: Exact output, float32 ``(batch, heads, R, head_dim)``.
    """

    rows: Tensor
    share: Tensor
    out: Tensor

    @classmethod
    def draw(cls, inputs: Inputs, number: int) -> Samples:
        """Attend from a few rows.

        Args:
            inputs: In raster order.
            number: How many rows.
        """
        q, k, v = inputs.qkv
        tokens = inputs.blocks.grid.tokens
        number = min(number, tokens)
        generator = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
        place = torch.arange(number) + torch.rand(number, generator=generator)
        rows = (place * (tokens / number)).long().clamp(max=tokens - 1).to(inputs.blocks.device)
        scores = q[:, :, rows] @ k.mT
        share = (scores.float() * inputs.scale).softmax(dim=-1)
        return cls(rows, share, share @ v.float())

    def sums(self, inputs: Inputs) -> BlockSums:
        """What each key block of an order gives to each row.

        Args:
            inputs: In that order; equal blocks.
        """
        blocks, share, position = inputs.blocks, self.share, self.rows
        missing = blocks.number * blocks.block - blocks.grid.tokens
        if blocks.order is not None:
            order = blocks.order.long().expand(*share.shape[:2], -1)
            share = share.gather(-1, order[:, :, None].expand(share.shape))
            inverse = torch.empty_like(order).scatter_(
                -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
            )
            position = inverse[..., self.rows]
        value = torch.nn.functional.pad(inputs.qkv[2].float(), (0, 0, 0, missing))
        value = value.unflatten(2, (-1, blocks.block))  # (B, H, N, b, D)
        share = torch.nn.functional.pad(share, (0, missing)).unflatten(-1, (-1, blocks.block))
        return BlockSums(
            row_block=(position // blocks.block).expand(*share.shape[:2], -1),
            mass=share.sum(dim=-1),
            value=(share.transpose(2, 3) @ value).transpose(2, 3).contiguous(),
            out=self.out,
        )


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Exact attention of sampled rows, summed over key blocks.

    Attributes:
        row_block: The query block of each row, int64 ``(batch, heads, R)``.
        mass: Share of each key block, ``(batch, heads, R, N)``.
        value: Its values weighted by their share, ``(batch, heads, R, N, head_dim)``.
        out: Exact output, ``(batch, heads, R, head_dim)``.
    """

    row_block: Tensor
    mass: Tensor
    value: Tensor
    out: Tensor

    def error(self, keep: Tensor) -> Tensor:
        """Squared error of the output if only these blocks are kept, mean over rows.

        Args:
            keep: Boolean ``(B|1, H|1, M, N)``.

        Returns:
            ``(batch, heads)``.
        """
        keep = keep.expand(*self.mass.shape[:2], -1, -1)
        index = self.row_block[..., None].expand(*self.mass.shape)
        kept = keep.gather(2, index).to(self.mass.dtype)
        total = (kept * self.mass).sum(dim=-1, keepdim=True).clamp(min=1e-20)
        out = (kept[..., None] * self.value).sum(dim=-2) / total
        return (out - self.out).square().sum(dim=-1).mean(dim=-1)
