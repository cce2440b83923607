"""Tokens that find their like in another frame attend through it: VidToMe's merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged
from vidsparse.policies.pruned import PruningOrder, kept_first, wanted

MATCH = "the token that each is merged into"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(PruningOrder):
    """In each chunk of frames, tokens merge into those of one frame that they are most like.

    VidToMe, arXiv 2312.10656: one frame of each chunk, drawn at random, is kept. Each token of the
    others finds the token there with the largest cosine; the most alike are merged, that is, they
    leave, and take the output of what they are like; the rest are kept too. There the likeness is
    of hidden states; here of the keys of all heads together, so that heads merge alike. The share
    that is merged is what meets the density, at most all tokens of the other frames.

    Attributes:
        chunk_size: Latent frames in a chunk, at least 2; the last may be smaller.
    """

    chunk_size: int = 4

    same_in_heads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chunk_size < 2:
            raise BadInputError(f"chunk_size must be at least 2 frames, got {self.chunk_size}")

    def arrange(self, inputs: Inputs) -> Arranged:
        """Match the tokens of each chunk as they are now."""
        if inputs.share is not None:
            raise BadInputError(
                "order=merged compares the keys of all heads, and here devices share the heads: "
                "run on one device, or take order=coreset with estimator=kept"
            )
        grid, (_, k, _) = inputs.blocks.grid, inputs.qkv
        share, generator = self._share(inputs), torch.Generator()
        generator.manual_seed(inputs.layer * 100_003 + inputs.step)
        key = k[:, :, grid.prefix : grid.prefix + grid.video_tokens].transpose(1, 2).flatten(2)
        length = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
        unit = (key / length.clamp(min=1e-6)).unflatten(1, (grid.frames, -1))
        match = torch.full(unit.shape[:3], -1, dtype=torch.int64, device=k.device)
        for start in range(0, grid.frames, self.chunk_size):
            frames = list(range(start, min(start + self.chunk_size, grid.frames)))
            into = frames.pop(int(torch.randint(len(frames), (), generator=generator)))
            merged = self._merged(grid, len(frames), share)
            if merged:
                found = _matched(unit, frames, into, merged)
                for frame, of_frame in zip(frames, found.unbind(1), strict=True):
                    match[:, frame] = of_frame
        match = match.flatten(1).to(torch.int32)
        if inputs.remember:
            inputs.common.park(MATCH, match, inputs.step)
        return self._arranged(inputs, match)

    def again(self, inputs: Inputs) -> Arranged:
        """As tokens were merged at the latest call."""
        match = inputs.common.get(MATCH)
        assert match is not None
        return self._arranged(inputs, match)

    def _arranged(self, inputs: Inputs, match: Tensor) -> Arranged:
        """With what is merged after what is kept, each in raster order."""
        is_merged = match >= 0
        video = is_merged.to(torch.uint8).argsort(dim=-1, stable=True)
        at = torch.arange(video.shape[-1], device=video.device).expand_as(video)
        place = torch.empty_like(video).scatter_(-1, video, at)
        source = place.gather(-1, torch.where(is_merged, match.long(), at)).gather(-1, video)
        grid, share = inputs.blocks.grid, self._share(inputs)
        merged = [
            self._merged(grid, min(self.chunk_size, grid.frames - start) - 1, share)
            for start in range(0, grid.frames, self.chunk_size)
        ]
        return kept_first(inputs, video[:, None], source[:, None], grid.video_tokens - sum(merged))

    def _share(self, inputs: Inputs) -> float:
        """Of the tokens that may merge, how many do."""
        grid = inputs.blocks.grid
        chunks = -(-grid.frames // self.chunk_size)
        may = (grid.frames - chunks) * grid.frame_tokens
        return min(1.0, (grid.video_tokens - wanted(inputs)) / max(1, may))

    def _merged(self, grid: TokenGrid, frames: int, share: float) -> int:
        """Tokens of so many frames that merge."""
        return round(share * frames * grid.frame_tokens)

    def label_bytes(self, grid: TokenGrid) -> int:
        """Bytes that all heads remember in host memory: where each token went."""
        return 4 * grid.video_tokens


def _matched(unit: Tensor, frames: list[int], into: int, merged: int) -> Tensor:
    """The token of a frame that those of others merge into, or -1 of those that stay.

    Args:
        unit: Tokens at length one, ``(batch, all frames, frame_tokens, width)``.
        frames: Which frames merge.
        into: The frame that they merge into.
        merged: How many of their tokens do, those most alike.

    Returns:
        In raster order of the video, int64 ``(batch, frames, frame_tokens)``.
    """
    tokens = unit.shape[2]
    best = [(unit[:, frame] @ unit[:, into].mT).max(dim=-1) for frame in frames]
    likeness = torch.stack([each.values for each in best], dim=1).flatten(1)
    found = torch.stack([each.indices for each in best], dim=1).flatten(1) + into * tokens
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    stays = torch.full_like(found, -1)
    stays.scatter_(-1, order[:, :merged], found.gather(-1, order[:, :merged]))
    return stays.unflatten(1, (len(frames), tokens))
