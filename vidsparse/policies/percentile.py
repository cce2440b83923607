"""A share of all entries of a head's map, as DraftAttention keeps it (arXiv 2505.14708)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse.kernels.planning.select import Lists, select_threshold
from vidsparse.policies.selectors import Selection, Selector, comparable


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile(Selector):
    """The best share of all entries of a head's map: DraftAttention, arXiv 2505.14708.

    The scores of every row, of video blocks alone, are made shares of one; of the ``n`` entries of
    a head's map the ``int((1 - density) * n)`` smallest go, less those that tie with the largest
    of them. So rows with one strong entry keep few blocks and flat rows keep many or none: a row
    that would end empty, which the paper allows, keeps its best block.
    """

    keeps_diagonal: ClassVar[bool] = False

    def select(self, these: Selection) -> Lists:
        """Keep what is not below the percentile."""
        assert these.density is not None
        blocks = these.inputs.blocks
        rows, columns = blocks.video_rows, blocks.video_columns
        inside = torch.full_like(these.estimate.scores, -math.inf)
        inside[..., columns] = these.estimate.scores[..., columns]
        scores = comparable(inside, these.measure)
        entries = scores[..., rows, columns].flatten(-2)
        dropped = math.floor((1 - these.density) * entries.shape[-1] + 1e-6)
        threshold = torch.tensor(-math.inf)
        if dropped:
            threshold = entries.kthvalue(dropped, dim=-1).values[..., None, None]
        return select_threshold(scores, threshold, min_count=these.least, always=these.always)
