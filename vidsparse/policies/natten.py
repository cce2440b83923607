"""Generalised neighbourhood attention as NATTEN has it: arXiv 2504.16922."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.checks import check_overlap, check_sizes
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.geometric import FAR, block_distance
from vidsparse.policies.token_masks import Geometric, Masks, Rule

AXES = ("frames", "height", "width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Natten(Geometric):
    """A window of so many tokens along each axis, shared by a stride of queries, and dilated.

    Along an axis of ``n`` tokens, position ``i`` sees the ``window`` positions from ``clamp(leader
    - window // 2, 0, n - window)`` on, where ``leader = min(i // stride * stride + stride // 2,
    n - 1)``. Under a dilation ``d`` the axis is ``d`` axes of every d-th position, and the rule
    holds in each. A window longer than an axis is the axis. With tiles of queries that divide the
    stride, and tiles of keys that divide the window and where windows start, all blocks are whole.

    Attributes:
        window_frames: Latent frames of the window.
        window_height: Rows of the window.
        window_width: Columns of the window.
        stride_frames: Latent frames that share a window.
        stride_height: Rows that share a window.
        stride_width: Columns that share a window.
        dilation_frames: A window holds every so-many-th frame.
        dilation_height: A window holds every so-many-th row.
        dilation_width: A window holds every so-many-th column.
        overlap: Share of a block's pairs inside the window for the block to be.
        masks: Whole blocks, or exactly the window of each query.
    """

    window_frames: int = 18
    window_height: int = 24
    window_width: int = 24
    stride_frames: int = 16
    stride_height: int = 8
    stride_width: int = 8
    dilation_frames: int = 1
    dilation_height: int = 1
    dilation_width: int = 1
    overlap: float = 0.5
    masks: Masks = Masks.BLOCK

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        for axis in AXES:
            check_sizes(self, f"window_{axis}", f"stride_{axis}", f"dilation_{axis}")
            window, stride = getattr(self, f"window_{axis}"), getattr(self, f"stride_{axis}")
            if stride > window:
                raise BadInputError(
                    f"stride_{axis}={stride} is more than window_{axis}={window}: queries would "
                    "not see themselves; give a stride of at most the window"
                )
        check_overlap(self.overlap)

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the window that would hold them, ``(1, 1, N, N)``."""
        grid = inputs.blocks.grid
        score = -block_distance(inputs.blocks, lambda q, k: self.distance(grid, q, k), self.overlap)
        return Estimate(scores=score, threshold=-1.0, make_exact=self.make_exact(inputs.blocks))

    def rule(self, blocks: Blocks) -> Rule:
        """A window along each axis."""
        grid, tables = blocks.grid, []
        for axis, length in zip(AXES, (grid.frames, grid.height, grid.width), strict=True):
            at = torch.arange(length)
            tables.append(self._along(axis, length, at[:, None], at) <= 1)
        return Rule(tuple(tables))

    def distance(self, grid: TokenGrid, q: Tensor, k: Tensor) -> Tensor:
        """How much wider the window would have to be for q to see k; at most 1 inside.

        Args:
            grid: The token grid.
            q: Frame, row and column of a query, int64 ``(..., 3)``.
            k: Those of a key, broadcastable to q.
        """
        farthest = torch.zeros((), device=q.device)
        lengths = (grid.frames, grid.height, grid.width)
        for axis, length, query, key in zip(AXES, lengths, q.unbind(-1), k.unbind(-1), strict=True):
            farthest = farthest.maximum(self._along(axis, length, query, key))
        return farthest

    def _along(self, axis: str, length: int, query: Tensor, key: Tensor) -> Tensor:
        """The same along one axis."""
        window, stride, dilation = (
            getattr(self, f"{of}_{axis}") for of in ("window", "stride", "dilation")
        )
        residue, query = query % dilation, query // dilation
        own = (length - residue + dilation - 1) // dilation  # of every so-many-th position
        size = own.clamp(max=window)
        leader = (query // stride * stride + stride // 2).minimum(own - 1)
        start = (leader - size // 2).clamp(min=0).minimum(own - size)
        away = ((key // dilation - start - (size - 1) / 2).abs() + 0.5) / (size / 2)
        away = away.where(size < own, 0.0)
        return away.masked_fill(key % dilation != residue, FAR)

    def token_density(self, grid: TokenGrid, block: int) -> float | None:
        """Keys of the windows over all keys, text besides."""
        seen = 1.0
        for axis, length in zip(AXES, (grid.frames, grid.height, grid.width), strict=True):
            window, dilation = getattr(self, f"window_{axis}"), getattr(self, f"dilation_{axis}")
            sizes = [math.ceil((length - r) / dilation) for r in range(min(dilation, length))]
            seen *= sum(size * min(window, size) for size in sizes) / length**2
        video = grid.video_tokens**2
        return (seen * video + grid.tokens**2 - video) / grid.tokens**2
