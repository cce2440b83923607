"""The highest attention of a sample of each block's tokens: PSA's importance, arXiv 2512.04025."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.head_sharing import own_of
from vidsparse.kernels.planning.exact_mass import largest_shares
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure


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
        return x.gather(2, index)

    n = places.shape[1]
    query = only_finite(drawn(q))
    return largest_shares(query, drawn(k), q_block=n, kv_block=n, scale=inputs.scale)
