"""Columns that all queries see, and diagonals: MInference's vertical-slash pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.sampled import draw_rows, shares_of_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class VerticalSlash(Estimator):
    """The columns and the diagonals with the most exact attention of a few rows.

    MInference, arXiv 2407.02490, where the rows are the last 64; here one is drawn from each of as
    many stretches of the sequence, and diagonals run to both sides. The first column and the main
    diagonal always belong to it. Columns and diagonals are of whole blocks: as many as hold the
    tokens asked for. A density makes both more or fewer, by one factor. Where an order puts tokens
    of one residue side by side (``axes``), its columns are MMInference's grid (arXiv 2504.16083).

    Attributes:
        columns: Tokens that all queries see, at least 1.
        diagonals: Distances that all queries see, in tokens, at least 1.
        pattern_rows: Query rows whose attention says which, at least 1.
    """

    columns: int = 1000
    diagonals: int = 6096
    pattern_rows: int = 64

    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        check_sizes(self, "columns", "diagonals", "pattern_rows")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by how many columns or diagonals it takes, ``(batch, heads, N, N)``."""
        block, number = inputs.blocks.block, inputs.blocks.number
        vertical, slash = masses(inputs, draw_rows(inputs, self.pattern_rows))
        vertical[..., 0] = math.inf
        slash[..., number - 1] = math.inf
        of_columns = -_place(vertical) / -(-self.columns // block)
        of_diagonals = -_place(slash) / -(-self.diagonals // block)
        at = torch.arange(number, device=inputs.blocks.device)
        offset = (at - at[:, None] + number - 1).flatten()
        of_pairs = of_diagonals.index_select(-1, offset).unflatten(-1, (number, number))
        return Estimate(
            scores=torch.maximum(of_pairs, of_columns[..., None, :]), threshold=-1.0, scales=True
        )


def masses(inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Exact attention of some rows, summed over columns and over diagonals of equal blocks.

    Args:
        inputs: The call.
        rows: Which, int64 ``(R,)``.

    Returns:
        Of each block of keys, ``(batch, heads, N)``, and of each difference of the key's block and
        the query's, from ``1 - N`` to ``N - 1``, ``(batch, heads, 2 N - 1)``.
    """
    q, blocks = inputs.qkv[0], inputs.blocks
    number, missing = blocks.number, -q.shape[2] % blocks.block
    vertical = torch.zeros(*q.shape[:2], number, device=q.device)
    slash = torch.zeros(*q.shape[:2], 2 * number - 1, device=q.device)
    offset = torch.arange(2 * number - 1, device=q.device)
    for part, share in shares_of_rows(inputs, rows):
        mass = F.pad(share, (0, missing)).unflatten(-1, (-1, blocks.block)).sum(dim=-1)
        vertical += mass.sum(dim=2)
        around = F.pad(mass, (number - 1, number - 1))
        index = (part // blocks.block)[:, None] + offset
        slash += around.gather(-1, index.expand(*mass.shape[:3], -1)).sum(dim=2)
    return vertical, slash


def _place(mass: Tensor) -> Tensor:
    """The place of each in descending order, from 1 on, float32 of the same shape."""
    order = mass.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(1, mass.shape[-1] + 1, device=mass.device, dtype=torch.float32)
    return torch.empty_like(mass).scatter_(-1, order, place.expand_as(mass))
