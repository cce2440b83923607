"""The highest attention of a sample of each block's tokens: PSA's importance, arXiv 2512.04025."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.head_sharing import own_of
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure

AT_ONCE = 1 << 26  # scores held at a time: 256 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak(Estimator):
    """Log of the largest attention probability between sampled tokens of two blocks.

    Of every block the same positions are drawn, others in each head, layer and step; the sampled
    queries attend to the sampled keys alone. A short last block repeats its last token.

    Attributes:
        sample: Share of a block's tokens that is drawn, in (0, 1].
    """

    sample: float = 0.25

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.LOG_MASS

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise BadInputError(f"sample must be in (0, 1], got {self.sample:g}")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block, ``(batch, heads, M, N)``."""
        return Estimate(scores=peaks(inputs, self.places(inputs)).log())

    def places(self, inputs: Inputs) -> Tensor:
        """Which positions of a block are drawn, ascending, int64 ``(heads, n)``."""
        block = inputs.blocks.block
        generator = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
        drawn = torch.rand(inputs.all_heads, block, generator=generator).argsort(dim=-1)
        number = max(1, round(self.sample * block))
        places = own_of(inputs.share, drawn[None, :, :number].sort(dim=-1).values)
        return places[0].to(inputs.blocks.device)


def peaks(inputs: Inputs, places: Tensor) -> Tensor:
    """Largest probability of each block pair, float32 ``(batch, heads, M, N)``.

    Args:
        inputs: Of equal blocks.
        places: Positions of a block, ``(heads, n)``.
    """
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    start = torch.arange(blocks.number, device=q.device) * blocks.block
    at = (start[:, None] + places[:, None]).clamp(max=blocks.grid.tokens - 1)  # (H, M, n)

    def drawn(x: Tensor) -> Tensor:
        index = at.flatten(1)[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3])
        return x.gather(2, index).float()

    number = places.shape[1]
    return largest_shares(only_finite(drawn(q)), drawn(k), number, number, inputs.scale)


def largest_shares(query: Tensor, key: Tensor, rows: int, columns: int, scale: float) -> Tensor:
    """Largest attention in each tile of a map, float32 ``(batch, heads, M, N)``.

    Args:
        query: ``(batch, heads, q_len, head_dim)``.
        key: ``(batch, heads, kv_len, head_dim)``.
        rows: Queries in a tile; the last may have fewer.
        columns: Keys in a tile, likewise.
        scale: Score scale.
    """
    of_a_row = query.shape[0] * query.shape[1] * rows * key.shape[2]
    found = []
    for part in query.split(rows * max(1, AT_ONCE // of_a_row), dim=2):
        share = (part @ key.mT).float().mul_(scale).softmax(dim=-1)
        missing = -key.shape[2] % columns, -part.shape[2] % rows
        if any(missing):  # else padding would copy
            share = F.pad(share, (0, missing[0], 0, missing[1]))
        share = share.unflatten(3, (-1, columns)).amax(dim=-1)
        found.append(share.unflatten(2, (-1, rows)).amax(dim=3))
    return torch.cat(found, dim=2)
