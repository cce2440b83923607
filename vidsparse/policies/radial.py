"""Radial Attention: attention energy decays with distance in time and space (arXiv 2506.19852).

For two frames ``d`` apart, of ``n`` tokens each, with ``L = 2**bit_length(n) / 2**bit_length(d)``:

    d <= 1, or the key frame is frame 0     every pair is kept
    L < block and d % int(block / L) != 0   no pair is kept
    otherwise                               pairs with |row - column| <= max(decay * L, block)

where row and column are positions inside their frames. Text rows and columns are kept whole.
Everything here is computed on true token spans: a block that crosses a frame boundary, or that
ends short, is counted exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.checks import check_overlap
from vidsparse.policies.estimator import Estimate, Inputs, Measure
from vidsparse.policies.geometric import DENSITY_DECIDES
from vidsparse.policies.token_masks import Geometric, Masks, Rule

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

BISECTIONS = 24  # exact for every decay at which a band widens by a token
BISECTIONS_BELOW_FLOOR = 10  # there, only the order of blocks matters


@dataclass(frozen=True, slots=True, kw_only=True)
class Radial(Geometric):
    """The static mask of Radial Attention.

    Attributes:
        decay: Width of the bands, in (0, 8]; 0.2 for Wan 2.1 and 0.95 for HunyuanVideo in the
            paper's code.
        first_frame: Whether every query sees the whole first frame (on for Wan in that code).
        overlap: Share of a block's pairs that the mask must hold for the block to be kept.
        masks: Whole blocks, or exactly the pairs of the rule.
    """

    decay: float = 0.2
    first_frame: bool = True
    overlap: float = 0.33
    masks: Masks = Masks.BLOCK

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 8:
            raise BadInputError(f"decay must be in (0, 8], got {self.decay}")
        check_overlap(self.overlap)

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density sets the width of the bands."""
        own = {} if density is None else {"decay": DENSITY_DECIDES}
        return own | dict(super(Radial, self).idle(density))  # of a class with slots

    def refuses(self, policy: Policy) -> str | None:
        """Its bands are cut from frames that stand one after the other."""
        if policy.order.moves:
            return "the radial mask is made for frames in raster order: order=raster"
        return None

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the decay at which the mask first covers it; smaller is better.

        Blocks that every decay covers, because no band is narrower than a block, are ranked below
        zero by the decay they would need without that floor, so that a density may ask for less.
        """
        blocks = inputs.blocks
        needed = self._smallest_decay(blocks, blocks.block, BISECTIONS)
        unfloored = self._smallest_decay(blocks, 0, BISECTIONS_BELOW_FLOOR)
        rank = torch.where(needed > 0, needed, unfloored / unfloored.amax().clamp(min=1) - 1)
        make_exact = self.make_exact(blocks)
        return Estimate(scores=-rank[None, None], threshold=-self.decay, make_exact=make_exact)

    def rule(self, blocks: Blocks) -> Rule:
        """Which frames see one another at all, and how far from a place."""
        grid = blocks.grid
        frames, rows, columns = (torch.arange(n) for n in (grid.frames, grid.height, grid.width))
        pairs = _FramePairs(self, grid, blocks.block, frames, frames)
        reach = pairs.width(self.decay, floor=blocks.block).masked_fill(pairs.whole, grid.tokens)
        reach = reach.masked_fill(pairs.dropped, -1)
        apart = (rows[:, None] - rows) * grid.width, columns[:, None] - columns
        return Rule(
            (~pairs.dropped, None, None),
            tuple(numbers.int() for numbers in (reach, *apart)),
            lambda reach, down, right: (down + right).abs() <= reach,
        )

    def token_density(self, grid: TokenGrid, block: int) -> float:
        """Pairs in the mask over all pairs, exactly, before tokens are rounded to blocks."""
        frames = torch.arange(-1, grid.frames)  # -1 stands for text
        size = torch.tensor([grid.prefix + grid.suffix] + [grid.frame_tokens] * grid.frames)
        whole = size[:, None] * size
        zero = torch.zeros_like(size)
        rule = _FramePairs(self, grid, block, frames, frames)
        width = rule.width(self.decay, floor=block)
        band = _pairs_in_band(zero, size, zero, size, width)
        return int(rule.count(whole, band).sum()) / grid.tokens**2

    def _smallest_decay(self, blocks: Blocks, floor: int, bisections: int) -> Tensor:
        """For each block ``(R, N)``, the smallest decay whose mask covers ``overlap`` of it.

        No band is narrower than ``floor`` tokens to each side.
        """
        s, number = blocks.segments, blocks.number
        asked = torch.arange(number, device=s.block.device) if blocks.only is None else blocks.only
        r = s.of_blocks(asked)
        rule = _FramePairs(self, blocks.grid, blocks.block, r.frame, s.frame)
        whole = (r.stop - r.start)[:, None] * (s.stop - s.start)
        target = self._target(blocks, asked)
        row = torch.searchsorted(asked, r.block)
        into_rows = row[:, None].expand(-1, number)
        into_columns = s.block.expand(len(row), -1)

        def covered(decay: Tensor) -> Tensor:
            per_segment = decay[row[:, None], s.block]
            band = _pairs_in_band(r.start, r.stop, s.start, s.stop, rule.width(per_segment, floor))
            pairs = rule.count(whole, band).float()  # exact: no more than those of a block
            columns = pairs.new_zeros(len(row), number).scatter_add_(1, into_columns, pairs)
            return torch.zeros_like(target).scatter_add_(0, into_rows, columns) >= target

        low = torch.zeros(len(asked), number, device=blocks.device)  # halving, float32 stays exact
        at_once = covered(low)
        widest = float(2 ** blocks.grid.frames.bit_length())  # there, every band is a whole frame
        high = torch.full_like(low, widest)
        never = ~covered(high)
        for _ in range(bisections):
            middle = (low + high) / 2
            inside = covered(middle)
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        beyond_every_decay = 4 * widest  # frames are dropped from 3 on, where widest is 4
        return high.masked_fill(at_once, 0.0).masked_fill(never, beyond_every_decay)

    def _target(self, blocks: Blocks, asked: Tensor) -> Tensor:
        """The fewest pairs of each block ``(R, N)`` that make up the overlap, float32."""
        size, last = blocks.block, blocks.number - 1
        sizes = size, blocks.grid.tokens - last * size
        pairs = [[float(ceil(self.overlap * row * column)) for column in sizes] for row in sizes]
        is_last = torch.arange(blocks.number, device=asked.device) == last
        return torch.tensor(pairs, device=asked.device)[is_last[asked].int()][:, is_last.int()]


class _FramePairs:
    """What the rule says of each pair of frames, as ``(G, G)`` tensors."""

    def __init__(
        self, radial: Radial, grid: TokenGrid, block: int, row_frame: Tensor, col_frame: Tensor
    ) -> None:
        row, col = row_frame[:, None], col_frame[None, :]
        distance = (row - col).abs()
        bits = grid.frame_tokens.bit_length()
        lengths = [2.0 ** (bits - d.bit_length()) for d in range(grid.frames + 1)]
        self.length = torch.tensor(lengths, device=distance.device)[distance]
        self._widest = grid.tokens  # every band is whole there
        text = (row < 0) | (col < 0)
        self.whole = text | (distance <= 1)
        if radial.first_frame:
            self.whole = self.whole | (col == 0)
        every = (block / self.length).floor().long().clamp(min=1)
        self.dropped = ~self.whole & (self.length < block) & (distance % every != 0)

    def width(self, decay: Tensor | float, floor: int) -> Tensor:
        """Half-width of the band in tokens, int64."""
        return (self.length * decay).clamp(floor, self._widest).long()

    def count(self, whole: Tensor, band: Tensor) -> Tensor:
        """Kept pairs of tokens, int64, given those of the whole pair of runs and of the band."""
        return torch.where(self.whole, whole, band).masked_fill(self.dropped, 0)


def _pairs_in_band(
    row_start: Tensor, row_stop: Tensor, col_start: Tensor, col_stop: Tensor, width: Tensor
) -> Tensor:
    """Count the pairs with ``|row - col| <= width`` in each rectangle of rows x columns, exactly.

    The runs are ``(G,)``, ``width`` and the result ``(G, G)``; all int64.
    """
    r0, r1 = row_start[:, None], row_stop[:, None]
    c0, c1 = col_start, col_stop

    def at_most(shift: Tensor) -> Tensor:
        """Pairs with ``col - row <= shift``: four triangles, by inclusion and exclusion."""
        return (
            _triangle(r1 - c0 + shift)
            - _triangle(r0 - c0 + shift)
            - _triangle(r1 - c1 + shift)
            + _triangle(r0 - c1 + shift)
        )

    return at_most(width) - at_most(-width - 1)


def _triangle(side: Tensor) -> Tensor:
    side = side.clamp(min=0)
    return (side * (side + 1)) >> 1
