"""A token grid cut into blocks: sizes, what must always be kept, and where frames begin and end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import block_sizes


@dataclass(frozen=True, eq=False)
class Blocks:
    """A sequence in raster order, cut every ``block`` tokens; the last block may be short.

    Attributes:
        grid: The layout of the sequence.
        block: Tokens in a block, of queries and of keys.
        device: Where tensors are made.
    """

    grid: TokenGrid
    block: int
    device: torch.device

    @property
    def number(self) -> int:
        return -(-self.grid.tokens // self.block)

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens in each block, float32 ``(N,)``."""
        return block_sizes(self.grid.tokens, self.block, self.device)

    @cached_property
    def always_kept(self) -> Tensor:
        """Boolean ``(N, N)``: the diagonal, and every row and column that holds text."""
        keep = torch.eye(self.number, dtype=torch.bool, device=self.device)
        starts = torch.arange(self.number, device=self.device) * self.block
        video_end = self.grid.prefix + self.grid.video_tokens
        text = (starts < self.grid.prefix) | (starts + self.sizes > video_end)
        return keep | text[:, None] | text

    @cached_property
    def segments(self) -> Segments:
        """The sequence cut at every block and every frame boundary."""
        return Segments.of(self)


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of tokens that lie in one block and in one frame; all tensors are int64 ``(G,)``.

    Attributes:
        block: The block each run lies in.
        frame: The frame each run lies in, or -1 for text.
        start: Position of its first token inside the frame.
        stop: Position after its last token inside the frame.
    """

    block: Tensor
    frame: Tensor
    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, blocks: Blocks) -> Segments:
        """Cut the sequence of ``blocks``."""
        grid, device = blocks.grid, blocks.device
        video_end = grid.prefix + grid.video_tokens
        cuts = torch.cat(
            [
                torch.arange(0, grid.tokens, blocks.block, device=device),
                torch.arange(grid.prefix, video_end + 1, grid.frame_tokens, device=device),
                torch.tensor([0, grid.tokens], device=device),
            ]
        ).unique()
        first, last = cuts[:-1], cuts[1:]
        is_video = (first >= grid.prefix) & (first < video_end)
        frame = (first - grid.prefix).div(grid.frame_tokens, rounding_mode="floor")
        offset = torch.where(is_video, grid.prefix + frame * grid.frame_tokens, first)
        return cls(
            block=first // blocks.block,
            frame=torch.where(is_video, frame, -1),
            start=first - offset,
            stop=last - offset,
        )
