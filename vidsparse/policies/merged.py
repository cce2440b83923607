"""Tokens that find their like in another frame attend through it: VidToMe's merging."""

from __future__ import annotations

import functools
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
KEPT = "how many are kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(PruningOrder):
    """In each chunk of frames, tokens merge into those of one frame that they are most like.

    VidToMe, arXiv 2312.10656: one frame of each chunk, drawn at random, is kept. Each token of the
    others finds the token there with the largest cosine; the most alike are merged, that is, they
    leave, and take the output of what they are like; the rest are kept too. There the likeness is
    of hidden states; here of the keys of all heads together, so that heads merge alike. The share
    that is merged is what meets the density, at most all tokens of the other frames.

    With a ``global_share``, chunks then merge with one another, first to last. Global tokens are
    what the chunk before attends through. A coin decides for each chunk. Either its own tokens are
    the source: the most alike leave for the global token with the largest cosine, and what the
    chunk attends through, old or new, is global from then on. Or the global tokens are: then none
    of the chunk's leave, and all of them are global. (There a chunk attends to itself and to the
    global tokens that did not merge; here all that is kept attends to all that is kept, so a global
    token stays for the chunk that it is of.) How many are kept depends on the coins, so the density
    is that of the mean over them.

    Attributes:
        chunk_size: Latent frames in a chunk, at least 2; the last may be smaller.
        global_share: Share of a chunk's tokens that merges into global ones, for a share of one
            that merges within the chunk, in [0, 1): both shrink and grow together. 0 merges within
            chunks alone; 8/9 merges .8 where .9 merge within, as published.
    """

    chunk_size: int = 4
    global_share: float = 0.0

    same_in_heads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.chunk_size < 2:
            raise BadInputError(f"chunk_size must be at least 2 frames, got {self.chunk_size}")
        if not 0 <= self.global_share < 1:
            raise BadInputError(
                f"global_share must be at least 0 and below 1, got {self.global_share:g}"
            )

    def arrange(self, inputs: Inputs) -> Arranged:
        """Match the tokens of each chunk as they are now."""
        if inputs.share is not None:
            raise BadInputError(
                "order=merged compares the keys of all heads, and here devices share the heads: "
                "run on one device, or take order=coreset with estimator=kept"
            )
        grid, (_, k, _) = inputs.blocks.grid, inputs.qkv
        share, generator = self._share(grid, wanted(inputs)), torch.Generator()
        generator.manual_seed(inputs.layer * 100_003 + inputs.step)
        key = k[:, :, grid.prefix : grid.prefix + grid.video_tokens].transpose(1, 2).flatten(2)
        length = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
        unit = (key / length.clamp(min=1e-6)).unflatten(1, (grid.frames, -1))
        into = torch.arange(grid.video_tokens, device=k.device).expand(len(k), -1).clone()
        known, kept = None, 0
        for chunk in self._chunks(grid):
            merged = self._merge_within(unit, into, chunk, share, generator)
            kept += len(chunk) * grid.frame_tokens - merged
            if self.global_share:
                own = _kept_of(into, chunk, grid.frame_tokens, merged)
                if known is not None and torch.rand((), generator=generator) > 0.5:
                    leave = round(self.global_share * share * own.shape[1])
                    _merge_across(unit.flatten(1, 2), into, own, known, leave)
                    kept -= leave
                known = into.gather(1, own)
        match = into.gather(1, into)  # what merged within follows what merged across
        match = match.masked_fill(match == torch.arange(match.shape[1], device=k.device), -1)
        match = match.to(torch.int32)
        if inputs.remember:
            inputs.common.park(MATCH, match, inputs.step)
            # from the host, where it stays, so that nobody waits for it
            counted = torch.full((len(match),), kept, dtype=torch.int32)
            inputs.common.park(KEPT, counted, inputs.step)
        return self._arranged(inputs, match, kept)

    def again(self, inputs: Inputs) -> Arranged:
        """As tokens were merged at the latest call."""
        match, kept = inputs.common.get(MATCH), inputs.common.get(KEPT)
        assert match is not None
        assert kept is not None
        return self._arranged(inputs, match, int(kept[0]))

    def _arranged(self, inputs: Inputs, match: Tensor, kept: int) -> Arranged:
        """With what is merged after what is kept, each in raster order."""
        is_merged = match >= 0
        video = is_merged.to(torch.uint8).argsort(dim=-1, stable=True)
        at = torch.arange(video.shape[-1], device=video.device).expand_as(video)
        place = torch.empty_like(video).scatter_(-1, video, at)
        source = place.gather(-1, torch.where(is_merged, match.long(), at)).gather(-1, video)
        return kept_first(inputs, video[:, None], source[:, None], kept)

    def _chunks(self, grid: TokenGrid) -> list[range]:
        """The frames of each chunk."""
        frames = range(grid.frames)
        return [frames[at : at + self.chunk_size] for at in range(0, len(frames), self.chunk_size)]

    def _share(self, grid: TokenGrid, wanted: float) -> float:
        """Of the tokens that may merge within their chunks, how many do, to keep so many."""
        chunks = self._chunks(grid)
        if self.global_share and len(chunks) > 1:
            sizes = tuple(len(chunk) for chunk in chunks)
            return _share_of_both(sizes, self.global_share, wanted / grid.frame_tokens)
        may = (grid.frames - len(chunks)) * grid.frame_tokens
        return min(1.0, (grid.video_tokens - wanted) / max(1, may))

    def _merge_within(
        self, unit: Tensor, into: Tensor, chunk: range, share: float, generator: torch.Generator
    ) -> int:
        """Merge frames into one of their chunk that is drawn; says how many tokens left."""
        frames, tokens = list(chunk), unit.shape[2]
        drawn = frames.pop(int(torch.randint(len(frames), (), generator=generator)))
        merged = round(share * len(frames) * tokens)
        if merged:
            found = _matched(unit, frames, drawn, merged)
            of_frames = into.unflatten(1, (-1, tokens))
            for frame, of_frame in zip(frames, found.unbind(1), strict=True):
                of_frames[:, frame] = torch.where(of_frame < 0, of_frames[:, frame], of_frame)
        return merged

    def label_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes that all heads remember in host memory: where each token went, and how many."""
        return 4 * (grid.video_tokens + 1)


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


def _kept_of(into: Tensor, chunk: range, frame_tokens: int, merged: int) -> Tensor:
    """The tokens of a chunk that did not merge within it, in raster order.

    Args:
        into: The token that each merged into, or itself, int64 ``(batch, video_tokens)``.
        chunk: Its frames.
        frame_tokens: Tokens of a frame.
        merged: How many of its tokens merged.

    Returns:
        Which, int64 ``(batch, tokens)``.
    """
    first, end = chunk.start * frame_tokens, chunk.stop * frame_tokens
    of_chunk = torch.arange(first, end, device=into.device)
    left = (into[:, first:end] != of_chunk).to(torch.uint8)
    return left.argsort(dim=-1, stable=True)[:, : end - first - merged] + first


def _merge_across(unit: Tensor, into: Tensor, own: Tensor, known: Tensor, leave: int) -> None:
    """Merge the tokens of a chunk that are most alike a global one into that.

    Args:
        unit: Tokens at length one, ``(batch, video_tokens, width)``.
        into: The token that each merged into, or itself, int64 ``(batch, video_tokens)``; changed.
        own: Which tokens are the chunk's, int64 ``(batch, tokens)``.
        known: Which are global, int64 ``(batch, global tokens)``; one may stand there twice.
        leave: How many of the chunk's merge.
    """
    sample = torch.arange(len(unit), device=unit.device)[:, None]
    best = (unit[sample, own] @ unit[sample, known].mT).max(dim=-1)
    most = best.values.argsort(dim=-1, descending=True, stable=True)[:, :leave]
    into.scatter_(1, own.gather(1, most), known.gather(1, best.indices.gather(1, most)))


@functools.lru_cache(maxsize=128)
def _share_of_both(frames: tuple[int, ...], global_share: float, wanted: float) -> float:
    """Of the tokens that may merge within their chunks, how many do where chunks merge too.

    Args:
        frames: Of each chunk, at least two.
        global_share: Share that merges across chunks for one that merges within.
        wanted: The root of the mean square of how much is kept, over all coins, in frames.
    """

    def kept_square(share: float) -> float:
        across = global_share * share
        first, *rest = (each - share * (each - 1) for each in frames)
        mean = first + sum(rest) * (1 - across / 2)
        return mean**2 + sum((across * each / 2) ** 2 for each in rest)

    low, high = 0.0, 1.0  # more share, less is kept
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kept_square(middle) > wanted**2 else (low, middle)
    return high
