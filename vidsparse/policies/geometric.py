"""Masks that need no data: bands, windows, slabs and discs. Radial Attention has its own file.

Each is a distance between two tokens, at most 1 inside the mask. A block scores minus the distance
within which ``overlap`` of its pairs lie, so a mask can be widened or narrowed to any density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.checks import check_overlap, check_sizes
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.orders import coordinates
from vidsparse.policies.token_masks import Geometric, Masks, Rule

DENSITY_DECIDES = "the density sets the width of the mask, so give one of the two"
SAMPLED = 8  # tokens of a block whose pairs stand for all
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band(Estimator):
    """Tokens that are near in the sequence: SVG's mask, arXiv 2502.01776.

    In raster order that is near in time; with all frames of a place side by side (``hwf``), near in
    space. At density s the band reaches ``1 - sqrt(1 - s)`` of the sequence to each side.

    Attributes:
        sink: Every query sees, beside the density, as many of the first positions as a frame has
            tokens: in raster order the first frame.
    """

    sink: bool = False

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by their distance, ``(1, 1, N, N)``."""
        blocks, grid = inputs.blocks, inputs.blocks.grid
        at = torch.arange(blocks.number, device=blocks.device)
        scores = -(at[:, None] - at).abs().float()[None, None]
        if not self.sink:
            return Estimate(scores=scores)
        first, end = grid.prefix // blocks.block, grid.prefix + grid.frame_tokens
        return Estimate(scores=scores, besides=(at >= first) & (at * blocks.block < end))

    def besides(self, grid: TokenGrid) -> float:
        """A frame's worth of keys."""
        return grid.frame_tokens / grid.tokens if self.sink else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBand(Estimator):
    """A band around the query's place in its frame, the same in every frame: Re-ttention.

    arXiv 2505.22918: places x and y of a frame of n tokens, in raster order, see one another in all
    frames where ``|x - y| <= int(width * n) // 2``: about a row of the image.

    Attributes:
        width: Of the band, a share of a frame, in (0, 1].
        overlap: Share of a block's pairs inside the band for the block to be.
    """

    width: float = 0.03125
    overlap: float = 0.5

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise BadInputError(f"width must be in (0, 1], got {self.width:g}")
        check_overlap(self.overlap)

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density sets the width of the mask."""
        return {} if density is None else {"width": DENSITY_DECIDES}

    def reach(self, grid: TokenGrid) -> int:
        """Places to either side of a query's own."""
        return int(self.width * grid.frame_tokens) // 2

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the distance of places in raster order, ``(1, 1, N, N)``."""
        grid = inputs.blocks.grid

        def distance(q: Tensor, k: Tensor) -> Tensor:
            return ((q[..., 1] - k[..., 1]) * grid.width + q[..., 2] - k[..., 2]).abs().float()

        score = -block_distance(inputs.blocks, distance, self.overlap)
        return Estimate(scores=score, threshold=-float(self.reach(grid)))

    def token_density(self, grid: TokenGrid, block: int) -> float | None:
        """Pairs of places within reach over all pairs, text besides."""
        n, reach = grid.frame_tokens, self.reach(grid)
        near = n * (2 * reach + 1) - reach * (reach + 1)
        text = grid.tokens**2 - grid.video_tokens**2
        return (near * grid.frames**2 + text) / grid.tokens**2


@dataclass(frozen=True, slots=True, kw_only=True)
class First(Estimator):
    """The first keys of the sequence, for all queries: with a checkerboard order, thinned keys."""

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by where they stand, ``(1, 1, N, N)``."""
        number = inputs.blocks.number
        at = torch.arange(number, device=inputs.blocks.device)
        return Estimate(scores=-at.float().expand(1, 1, number, number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Places(Estimator):
    """Tokens that are near in their frames, whatever the frames: the multi-diagonal pattern.

    Attributes:
        overlap: Share of a block's pairs that must be as near for the block to be.
    """

    overlap: float = 0.1

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the distance of places in raster order, ``(1, 1, N, N)``."""
        width = inputs.blocks.grid.width

        def distance(q: Tensor, k: Tensor) -> Tensor:
            return ((q[..., 1] - k[..., 1]) * width + q[..., 2] - k[..., 2]).abs().float()

        return Estimate(scores=-block_distance(inputs.blocks, distance, self.overlap))


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood(Geometric):
    """A window around each query: STA (arXiv 2502.04507) and NATTEN's GNA (2504.16922).

    All sizes are in tokens. With ``unit_*`` above 1, queries and keys count as the boxes they lie
    in and windows are whole boxes: sliding tiles. A window that would leave the grid is moved back
    inside, so every query sees equally much. An axis that the window spans does not count; under a
    density, of what is equally far from the window the nearest to the query is seen first.

    Attributes:
        window_frames: Latent frames of the window.
        window_height: Rows of the window.
        window_width: Columns of the window.
        unit_frames: Latent frames of a box.
        unit_height: Rows of a box.
        unit_width: Columns of a box.
        stride: So many boxes along each axis share the window of the middle one.
        dilation: Only every so-many-th box of the window is seen, counted from the query's own.
        overlap: Share of a block's pairs inside the window for the block to be.
        masks: Whole blocks, or exactly the window of each query.
    """

    window_frames: int = 12
    window_height: int = 24
    window_width: int = 24
    unit_frames: int = 1
    unit_height: int = 1
    unit_width: int = 1
    stride: int = 1
    dilation: int = 1
    overlap: float = 0.33
    masks: Masks = Masks.BLOCK

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        sizes = ("window_frames", "window_height", "window_width")
        units = ("unit_frames", "unit_height", "unit_width", "stride", "dilation")
        check_sizes(self, *sizes, *units)
        check_overlap(self.overlap)

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the window that would hold them, ``(1, 1, N, N)``."""
        grid = inputs.blocks.grid
        score = -block_distance(inputs.blocks, lambda q, k: self.distance(grid, q, k), self.overlap)
        return Estimate(scores=score, threshold=-1.0, make_exact=self.make_exact(inputs.blocks))

    def rule(self, blocks: Blocks) -> Rule:
        """A window along each axis."""
        grid = blocks.grid
        places = [torch.arange(n) for n in (grid.frames, grid.height, grid.width)]
        return Rule(
            tuple(self._away(axis, len(at), at[:, None], at) <= 1 for axis, at in enumerate(places))
        )

    def token_density(self, grid: TokenGrid, block: int) -> float | None:
        """Keys of the windows over all keys, text besides."""
        return self.rule(Blocks(grid, block, torch.device("cpu"))).density(grid)

    def distance(self, grid: TokenGrid, q: Tensor, k: Tensor) -> Tensor:
        """How much wider the window would have to be for q to see k; at most 1 inside.

        Args:
            grid: The token grid.
            q: Frame, row and column of a query, int64 ``(..., 3)``.
            k: Those of a key, broadcastable to q.
        """
        farthest = torch.zeros((), device=q.device)
        lengths = (grid.frames, grid.height, grid.width)
        axes = zip(lengths, q.unbind(-1), k.unbind(-1), strict=True)
        for axis, (length, query, key) in enumerate(axes):
            farthest = farthest.maximum(self._away(axis, length, query, key))
        return farthest - TIE * (1 - apart(grid, q, k, self._units))

    @property
    def _units(self) -> tuple[int, int, int]:
        return self.unit_frames, self.unit_height, self.unit_width

    def _away(self, axis: int, length: int, query: Tensor, key: Tensor) -> Tensor:
        """How much wider the window would have to be along one axis; at most 1 inside."""
        window = (self.window_frames, self.window_height, self.window_width)[axis]
        unit = self._units[axis]
        boxes, reach = math.ceil(length / unit), max(1, round(window / unit))
        query, key = query // unit, key // unit
        leader = (query // self.stride * self.stride + self.stride // 2).clamp(max=boxes - 1)
        start = (leader - reach // 2).clamp(min=0, max=max(0, boxes - reach))
        away = ((key - start - (reach - 1) / 2).abs() + 0.5) / (reach / 2)
        away = away if reach < boxes else torch.zeros_like(away)
        return away.masked_fill((key - query) % self.dilation != 0, FAR)


OUTSIDE_ON_IT = -1.0 + 2.0**-24  # in float32 the next number after -1
FAR = 1e6  # what no window reaches
TIE = 1e-3  # less than any two windows differ by


def apart(grid: TokenGrid, q: Tensor, k: Tensor, units: tuple[int, int, int]) -> Tensor:
    """How far apart the boxes of q and k are, in [0, 1): of the grid's diagonal."""
    size = torch.tensor([grid.frames, grid.height, grid.width], device=q.device)
    unit = torch.tensor(units, device=q.device)
    boxes = (size + unit - 1) // unit
    return (((q // unit - k // unit) / boxes).square().sum(dim=-1) / 3).sqrt()


class Axis(StrEnum):
    """An axis of the token grid."""

    FRAMES = "frames"
    HEIGHT = "height"
    WIDTH = "width"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab(Estimator):
    """All that lies in the query's box along one axis, wherever it is along the others.

    What the search of STA (arXiv 2502.04507) gives to heads that look at whole frames, whole rows
    or whole columns. Under a density the next boxes follow, in each the nearest first.

    Attributes:
        axis: Along which keys are near.
        unit_frames: Latent frames of a box.
        unit_height: Rows of a box.
        unit_width: Columns of a box.
        overlap: Share of a block's pairs inside the slab for the block to be.
    """

    axis: Axis = Axis.FRAMES
    unit_frames: int = 1
    unit_height: int = 1
    unit_width: int = 1
    overlap: float = 0.33

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        check_sizes(self, "unit_frames", "unit_height", "unit_width")
        check_overlap(self.overlap)

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by how many boxes away they are, ``(1, 1, N, N)``."""
        grid, units = inputs.blocks.grid, (self.unit_frames, self.unit_height, self.unit_width)
        axis = list(Axis).index(self.axis)

        def distance(q: Tensor, k: Tensor) -> Tensor:
            away = (q[..., axis] // units[axis] - k[..., axis] // units[axis]).abs()
            return 1 + away - TIE * (1 - apart(grid, q, k, units))

        score = -block_distance(inputs.blocks, distance, self.overlap)
        return Estimate(scores=score, threshold=-1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disc(Geometric):
    """Keys within a circle around the query: CLEAR, arXiv 2412.16112, for images.

    Attributes:
        radius: In tokens; a key exactly that far away is outside.
        overlap: Share of a block's pairs inside the circle for the block to be.
        masks: Whole blocks, or exactly the circle around each query.
    """

    radius: float = 16.0
    overlap: float = 0.33
    masks: Masks = Masks.BLOCK

    needs_data: ClassVar[bool] = False
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise BadInputError(f"radius must be above 0 tokens, got {self.radius:g}")
        check_overlap(self.overlap)

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density sets the width of the mask."""
        own = {} if density is None else {"radius": DENSITY_DECIDES}
        return own | dict(super(Disc, self).idle(density))  # of a class with slots

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by the radius that would hold them, ``(1, 1, N, N)``."""

        def distance(q: Tensor, k: Tensor) -> Tensor:
            return (q[..., 1:] - k[..., 1:]).float().norm(dim=-1) / self.radius

        score = -block_distance(inputs.blocks, distance, self.overlap)
        make_exact = self.make_exact(inputs.blocks)
        return Estimate(scores=score, threshold=OUTSIDE_ON_IT, make_exact=make_exact)

    def rule(self, blocks: Blocks) -> Rule:
        """The circle, in the square around it."""
        square = [torch.arange(n) for n in (blocks.grid.height, blocks.grid.width)]
        apart = [(at[:, None] - at).int() ** 2 for at in square]
        most = self.radius**2
        near = [squared < most for squared in apart]
        return Rule((None, *near), (None, *apart), lambda down, right: down + right < most)

    def token_density(self, grid: TokenGrid, block: int) -> float | None:
        """Pairs of places within the circle over all pairs, text besides."""
        down, right = (torch.arange(1 - n, n) for n in (grid.height, grid.width))
        inside = (down[:, None] ** 2 + right**2).float() < self.radius**2
        number = (grid.height - down.abs())[:, None] * (grid.width - right.abs())
        near = int(number[inside].sum()) * grid.frames**2
        return (near + grid.tokens**2 - grid.video_tokens**2) / grid.tokens**2


def block_distance(blocks: Blocks, distance: Distance, overlap: float) -> Tensor:
    """The distance within which a share of the pairs of each two blocks lie.

    Args:
        blocks: In an order that all heads share.
        distance: Of tokens given by frame, row and column, ``(..., 3)``.
        overlap: The share.

    Returns:
        Float32 ``(1, 1, N, N)``, of the rows of ``blocks.only`` if it is set. Blocks of more than
        ``SAMPLED`` tokens are judged by as many, evenly spaced. Text is at distance zero.
    """
    grid, number = blocks.grid, blocks.number
    text = [torch.full((n, 3), -1) for n in (grid.prefix, grid.suffix)]
    token = torch.cat([text[0], coordinates(grid), text[1]]).to(blocks.device)
    if blocks.order is not None:
        token = token[blocks.order[0, 0].long()]
    count = min(SAMPLED, blocks.block)
    share = (torch.arange(count, device=blocks.device) + 0.5) / count
    start = torch.arange(number, device=blocks.device) * blocks.block
    at = (start[:, None] + share * blocks.sizes[:, None]).long()
    sampled = token[at]  # (N, count, 3)
    nearest = max(1, math.ceil(overlap * count * count))
    rows = []
    queries = sampled if blocks.only is None else sampled[blocks.only]
    for q in queries.split(64):
        pairs = distance(q[:, None, :, None], sampled[None, :, None])
        is_text = (q[:, None, :, None, 0] < 0) | (sampled[None, :, None, :, 0] < 0)
        pairs = pairs.float().masked_fill(is_text, 0.0).flatten(2)
        rows.append(pairs.kthvalue(nearest, dim=-1).values)
    return torch.cat(rows)[None, None]
