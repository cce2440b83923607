"""Equally many blocks in every row, as AdaSpa (2502.21079) and SparseD (2509.24014) keep them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.head_sharing import all_of, own_of
from vidsparse.kernels.planning.select import Lists
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.lists import lists_of_mask
from vidsparse.policies.selectors import Selection, Selector, comparable

GOOD = 0.8  # recall of a head that can do with less


class Rounding(StrEnum):
    """How many blocks a share of a row is.

    Attributes:
        NEAREST: The nearest whole number.
        BEYOND: One more than the whole blocks in it: SparseD.
    """

    NEAREST = "nearest"
    BEYOND = "beyond"

    def of(self, blocks: Tensor) -> Tensor:
        """Whole blocks, int64 of the same shape."""
        if self is Rounding.BEYOND:
            return (blocks + 1e-4).floor().long() + 1
        return blocks.round().long()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Selector):
    """The best blocks of video of every row, equally many; text is exact besides, no diagonal.

    Attributes:
        rounding: How many blocks the density is.
        classes: Let heads differ at the same mean density ``d``, as AdaSpa does: the heads that
            keep most of their mass get ``d / 2``, as many that keep least get ``1.5 d``, the others
            ``d``. As many as keep more than .8 of it at ``d``, at most half of the heads. Above
            ``d`` of 2/3 they move by what is left to one, instead of by half.
    """

    rounding: Rounding = Rounding.NEAREST
    classes: bool = False

    equal_rows: ClassVar[bool] = True
    keeps_diagonal: ClassVar[bool] = False

    def select(self, these: Selection) -> Lists:
        """Keep the best of every row."""
        assert these.density is not None
        blocks = these.inputs.blocks
        columns = blocks.video_columns
        mass = torch.full_like(these.estimate.scores, -math.inf)
        mass[..., columns] = these.estimate.scores[..., columns]
        mass = comparable(mass, these.measure)
        rank = mass.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        video = columns.stop - columns.start
        density = torch.full(mass.shape[:2], these.density, device=mass.device)
        if self.classes:
            recall = self._recall(mass, rank, self._counts(density, video, these.least), blocks)
            density = self._density(recall, these.density, these.inputs)
        keep = rank < self._counts(density, video, these.least)[..., None, None]
        return lists_of_mask(keep | these.always, these.least)

    def _counts(self, density: Tensor, video: int, least: int) -> Tensor:
        """Blocks in a row of each head, int64 ``(batch, heads)``."""
        return self.rounding.of(density * video).clamp(min=least, max=max(least, video))

    @staticmethod
    def _recall(mass: Tensor, rank: Tensor, counts: Tensor, blocks: Blocks) -> Tensor:
        """Share of a head's mass that so many blocks a row keep, ``(batch, heads)``."""
        rows = blocks.video_rows
        weighed = (mass * blocks.q_sizes.unsqueeze(-1))[..., rows, :]
        kept = weighed * (rank[..., rows, :] < counts[..., None, None])
        return kept.sum(dim=(-2, -1)) / weighed.sum(dim=(-2, -1)).clamp(min=1e-30)

    @staticmethod
    def _density(recall: Tensor, density: float, inputs: Inputs) -> Tensor:
        """Of each head that is here, by its class among all heads of the layer."""
        recall = all_of(inputs.share, recall)
        heads = recall.shape[1]
        place = recall.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        good = (recall > GOOD).sum(dim=1, keepdim=True).clamp(max=heads // 2)
        moved = min(density / 2, 1 - density)  # so the mean stays where the paper has no rule
        found = torch.full_like(recall, density).masked_fill(place < good, density - moved)
        found = found.masked_fill(place >= heads - good, density + moved)
        return own_of(inputs.share, found)
