"""Keys sorted by importance within segments: permuted block-sparse attention."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.permute import permute_tokens
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged, Order
from vidsparse.policies.sampled import draw_rows, shares_of_rows

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

PLACES = "places of keys in their segments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance(Order):
    """The keys of each segment from the most to the least attended: PBS-Attn, arXiv 2510.21270.

    Queries stay where they are. A key's importance is the mean share of the attention that it gets
    from a few query rows; so the keys that many rows want stand in few blocks. There the rows are
    the last block's, since a language model looks back; here one is drawn from each of as many
    stretches of the sequence. Text stays in its place.

    Attributes:
        segment: Keys in a segment, at least 2, within which they are sorted.
        judges: Query rows that say what is important, at least 1.
    """

    segment: int = 256
    judges: int = 128

    static: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.segment <= 1 << 15:
            raise BadInputError(f"segment must be from 2 to 32768 keys, got {self.segment}")
        check_sizes(self, "judges")

    def refuses(self, policy: Policy) -> str | None:
        """Masks without data are of places, and a segment of one block has no blocks to sort."""
        estimator = policy.estimator
        if not estimator.needs_data or estimator.observes:
            return (
                "order=importance moves keys by what they are, at every step: take an estimator "
                "that looks at them, and does not observe, such as pooled"
            )
        block = policy.key_block or policy.block
        if block is not None and self.segment <= block:
            return (
                f"segment={self.segment} lies within one block of {block} keys, where their order "
                "changes nothing: take a larger segment"
            )
        return None

    def arrange(self, inputs: Inputs) -> Arranged:
        """Sort the keys of each segment by what they are now."""
        grid, (_, k, _) = inputs.blocks.grid, inputs.qkv
        heavy = torch.zeros(*k.shape[:3], device=k.device)
        for _, share in shares_of_rows(inputs, draw_rows(inputs, self.judges)):
            heavy += share.sum(dim=2)
        heavy[..., : grid.prefix] = math.inf
        heavy[..., grid.tokens - grid.suffix :] = -math.inf
        missing = -grid.tokens % self.segment
        heavy = torch.nn.functional.pad(heavy, (0, missing), value=-math.inf)
        heavy = heavy.unflatten(-1, (-1, self.segment))
        places = heavy.sort(dim=-1, descending=True, stable=True).indices.flatten(-2)
        if inputs.remember:
            video = places[..., grid.prefix : grid.prefix + grid.video_tokens]
            inputs.common.park(PLACES, video.to(self._type), inputs.step)
        return self._arranged(inputs, places[..., : grid.tokens])

    def again(self, inputs: Inputs) -> Arranged:
        """As they were sorted at the latest call."""
        grid, video = inputs.blocks.grid, inputs.common.get(PLACES)
        assert video is not None
        at = torch.arange(grid.tokens, device=video.device) % self.segment
        at = at.expand(*video.shape[:2], -1)
        before, _, after = at.split([grid.prefix, grid.video_tokens, grid.suffix], dim=-1)
        return self._arranged(inputs, torch.cat([before, video.long(), after], dim=-1))

    def _arranged(self, inputs: Inputs, places: Tensor) -> Arranged:
        """With keys and values taken from these places of their segments."""
        _, k, v = inputs.qkv
        start = torch.arange(places.shape[-1], device=places.device)
        order = (start // self.segment * self.segment + places).to(torch.int32)
        k, v = (permute_tokens(x, order) for x in (k, v))
        return Arranged(dataclasses.replace(inputs, k=k, v=v), None, order)

    @property
    def _type(self) -> torch.dtype:
        return torch.uint8 if self.segment <= 256 else torch.int16

    def label_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers in host memory: the place of each key."""
        return self._type.itemsize * grid.video_tokens
