"""By what a head chooses among alternatives: the rules of the papers, on a few exact rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsparse.policies.estimator import Inputs
from vidsparse.policies.sampled import Candidate, Samples

if TYPE_CHECKING:
    from vidsparse.policies.choice import Alternatives

LOOKED_AT = 16  # blocks of queries
SMALL, MOSTLY = 1e-3, 0.9  # a block is empty if so many of its entries are below that
MIX = 0.5  # of emptiness and evenness; the paper does not say it


class ChooseBy(StrEnum):
    """By what a head chooses.

    Attributes:
        ERROR: The least error of the output on sampled rows: SVG, arXiv 2502.01776.
        RECALL: The first that holds ``recall`` of the mass of its rows, else the last: RainFusion,
            arXiv 2505.21036. The rows are of the first frame for the first, of all for the others.
        LOSS: The least error, relative to the layer's outputs, plus ``cost_weight`` of its density:
            Sparse-vDiT, arXiv 2506.03065. One that skips nothing is taken where all others lose
            more than ``most_loss``.
        BLOCKINESS: The order under which attention has the most empty blocks and the most even
            ones: PAROAttention, arXiv 2506.16054. It looks at no mask.
    """

    ERROR = "error"
    RECALL = "recall"
    LOSS = "loss"
    BLOCKINESS = "blockiness"


MaskOf = Callable[[int], Tensor]
"""The blocks that a candidate keeps, boolean ``(B|1, H|1, M, N)``."""
Under = Callable[[int, Samples], Candidate]
"""Sampled rows under the order of a candidate."""


def first_frame_rows(inputs: Inputs, number: int) -> Tensor:
    """Evenly spaced tokens of the first frame, int64 ``(R,)``."""
    grid = inputs.blocks.grid
    number = min(number, grid.frame_tokens)
    at = torch.arange(number) * grid.frame_tokens // number
    return (grid.prefix + at).to(inputs.blocks.device)


def every_so_many_rows(inputs: Inputs, number: int) -> Tensor:
    """Evenly spaced tokens of the video, int64 ``(R,)``."""
    grid = inputs.blocks.grid
    number = min(number, grid.video_tokens)
    at = torch.arange(number) * grid.video_tokens // number
    return (grid.prefix + at).to(inputs.blocks.device)


def by_recall(
    inputs: Inputs, rule: Alternatives, number: int, masks: MaskOf, under: Under
) -> Tensor:
    """A loss whose least is the first that holds enough, ``(candidates, batch, heads)``."""
    rows = (first_frame_rows, every_so_many_rows)
    samples = [Samples.at(inputs, of(inputs, rule.sampled_rows)) for of in rows]
    losses = []
    for at in range(number):
        held = under(at, samples[min(at, 1)]).recall(masks(at))
        late = torch.full_like(held, at + number)
        losses.append(late.masked_fill(held >= rule.recall, at))
    losses[-1] = torch.full_like(losses[-1], number - 1)
    return torch.stack(losses)


def by_loss(
    error: Tensor, size: Tensor, densities: Sequence[float | Tensor], rule: Alternatives
) -> Tensor:
    """Relative error and cost of each candidate.

    Args:
        error: Squared, ``(candidates, batch, heads)``.
        size: Mean square of the exact outputs of the layer, ``(batch, 1)``.
        densities: What each candidate computes; a mask of its own says it on the device.
        rule: Its weights.
    """
    costs = (torch.as_tensor(each, dtype=torch.float32) for each in densities)
    cost = torch.stack([each.to(error.device, non_blocking=True) for each in costs])[:, None, None]
    loss = error / size.clamp(min=1e-20) + rule.cost_weight * cost
    whole = torch.tensor([not isinstance(each, Tensor) and each >= 1 for each in densities])
    whole = whole.to(error.device, non_blocking=True)[:, None, None]
    return torch.where(whole, rule.most_loss + 1e-6, loss)  # all others lose more


def by_blockiness(inputs: Inputs, arranged: list[Inputs]) -> Tensor:
    """The paper's metric of each order, smaller is better, ``(candidates, batch, heads)``.

        alpha (1 - empty) / sum(1 - empty) + (1 - alpha) uneven / sum(uneven), sums over orders

    ``empty`` is the share of blocks in which nearly all probabilities are below .001, ``uneven``
    the mean over blocks of largest over mean probability; alpha is a half. As printed, the paper
    prefers few empty blocks, against its own words.
    """
    found = [_empty_and_uneven(each) for each in arranged]
    full = torch.stack([1 - empty for empty, _ in found])
    uneven = torch.stack([each for _, each in found])
    parts = (x / x.sum(dim=0).clamp(min=1e-20) for x in (full, uneven))
    return sum((weight * x for weight, x in zip((MIX, 1 - MIX), parts, strict=True)), full * 0)


def _empty_and_uneven(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Both parts of the metric in one order, from some blocks of queries, ``(batch, heads)``."""
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    rows = blocks.video_rows
    number = rows.stop - rows.start
    seed = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
    some = rows.start + torch.randperm(max(1, number), generator=seed)[:LOOKED_AT]
    empty, uneven, missing = [], [], -blocks.grid.tokens % blocks.block
    for block in some.tolist():
        query = q[:, :, block * blocks.block : (block + 1) * blocks.block]
        share = (query.float() @ k.float().mT * inputs.scale).softmax(dim=-1)
        tiles = torch.nn.functional.pad(share, (0, missing), value=torch.nan)
        tiles = tiles.unflatten(-1, (-1, blocks.block)).transpose(2, 3).flatten(3)
        there = ~tiles.isnan()
        small = ((tiles < SMALL) & there).sum(dim=-1) / there.sum(dim=-1)
        empty.append((small >= MOSTLY).float().mean(dim=-1))
        most, mean = tiles.nan_to_num(0.0).amax(dim=-1), tiles.nanmean(dim=-1)
        uneven.append(torch.where(mean > 0, most / mean, 1.0).mean(dim=-1))
    return torch.stack(empty).mean(dim=0), torch.stack(uneven).mean(dim=0)
