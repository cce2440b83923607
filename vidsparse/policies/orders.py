"""Orders: where tokens are put before blocks are cut. Text stays at its ends.

Attention does not care about the order of its tokens, so any grid works with any block size: there
is no padding and no table of resolutions.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.permute import permute_together
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.part import Part

AXES = ("fhw", "fwh", "hfw", "hwf", "wfh", "whf")


class Arranged(NamedTuple):
    """A call in an order.

    Attributes:
        inputs: With q, k, v and blocks in the order.
        q_order: How to put the output back, int32 ``(B|1, H|1, seq)``; None if nothing moved.
        kv_order: The same of keys and values.
    """

    inputs: Inputs
    q_order: Tensor | None = None
    kv_order: Tensor | None = None


class Order(Part, ABC):
    """Puts tokens in order. A frozen dataclass of its parameters."""

    __slots__ = ()

    static: ClassVar[bool] = True
    """Whether the order depends on nothing but the grid and the layer."""
    per_layer: ClassVar[bool] = False
    """Whether layers differ."""
    prunes: ClassVar[bool] = False
    """Whether some tokens attend for all."""
    same_in_heads: ClassVar[bool] = False
    """Whether what is remembered in host memory is of all heads at once."""
    moves: ClassVar[bool] = True
    """Whether tokens leave the places they come in."""

    @property
    def learned(self) -> bool:
        """Whether it is made of the tokens themselves, and so is worth sharing."""
        return not self.static

    @property
    def spreads_frames(self) -> bool:
        """Whether the tokens of one frame stand in nearly every block."""
        return False

    @property
    def clusters_queries(self) -> bool:
        """Whether blocks of queries are clusters, of sizes of their own."""
        return False

    @property
    def clusters_keys(self) -> bool:
        """Whether blocks of keys are."""
        return False

    @property
    def makes_clusters(self) -> bool:
        """Whether blocks of either are."""
        return self.clusters_queries or self.clusters_keys

    @property
    def counts_blocks(self) -> bool:
        """Whether the size of blocks says how many clusters there are."""
        return False

    @property
    def fills_tiles(self) -> bool:
        """Whether clusters are moved to sizes of whole blocks."""
        return False

    @property
    def learns_while_dense(self) -> bool:
        """Whether ``learn`` is to be called at dense steps."""
        return False

    def learn(self, inputs: Inputs) -> None:
        """Look at a call that stays dense, for the first that does not."""
        raise NotImplementedError

    @abstractmethod
    def arrange(self, inputs: Inputs) -> Arranged: ...

    @abstractmethod
    def again(self, inputs: Inputs) -> Arranged:
        """In the order of the latest call that was told to remember."""

    def block_counts(
        self, grid: TokenGrid, block: int, key_block: int | None = None
    ) -> tuple[int, int]:
        """How many blocks of queries and of keys there are, of so many tokens."""
        return -(-grid.tokens // block), -(-grid.tokens // (key_block or block))

    def state_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers on the device, with blocks of so many tokens."""
        return 0

    def parked_bytes(self, grid: TokenGrid, block: int, head_dim: int) -> int:
        """Bytes a head always remembers in host memory."""
        return 0

    def label_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers in host memory, where a plan is used again."""
        return 0


class StaticOrder(Order):
    """An order that depends on nothing but the grid, the same for all heads and layers."""

    __slots__ = ()

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Which token stands at each position, int32 ``(seq,)``; None for raster."""
        raise NotImplementedError

    def fitted(self, block: int) -> StaticOrder:
        """What this is where blocks have so many tokens."""
        return self

    def arrange(self, inputs: Inputs) -> Arranged:
        """Permute q, k and v."""
        fitted, blocks = self.fitted(inputs.blocks.block), inputs.blocks
        order = cached_positions(fitted, blocks.grid, blocks.device)
        return Arranged(inputs) if order is None else in_order(inputs, order)

    def again(self, inputs: Inputs) -> Arranged:
        """Permute q, k and v: the order does not change."""
        return self.arrange(inputs)


@functools.lru_cache(maxsize=32)
def cached_positions(order: StaticOrder, grid: TokenGrid, device: torch.device) -> Tensor | None:
    """Which token stands at each position, int32 ``(1, 1, seq)``; None where nothing moves."""
    with torch.inference_mode(False):  # it outlives the mode that it is made in
        positions = order.positions(grid)
        return None if positions is None else positions[None, None].to(device)


def in_order(inputs: Inputs, order: Tensor) -> Arranged:
    """A call with all its tokens in one order, int32 ``(B|1, H|1, seq)``."""
    there = [x for x in (inputs.q, inputs.k, inputs.v) if x is not None]
    q, k, v = permute_together(there, order) if there else (None, None, None)
    blocks = dataclasses.replace(inputs.blocks, order=order)
    return Arranged(dataclasses.replace(inputs, q=q, k=k, v=v, blocks=blocks), order, order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster(StaticOrder):
    """As the tokens come: frame by frame, row by row."""

    moves: ClassVar[bool] = False

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Nothing moves."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile(StaticOrder):
    """Box by box, raster inside each; boxes at the end of an axis are smaller where they must be.

    Attributes:
        tile_frames: Latent frames of a box.
        tile_height: Rows of a box, in tokens.
        tile_width: Columns of a box, in tokens; None takes as many as fill a block.
    """

    tile_frames: int = 1
    tile_height: int = 8
    tile_width: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "tile_frames", "tile_height", "tile_width")

    def fitted(self, block: int) -> Tile:
        """With boxes that fill a block of so many tokens."""
        if self.tile_width is not None:
            return self
        width = max(1, block // (self.tile_frames * self.tile_height))
        return dataclasses.replace(self, tile_width=width)

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Sort by box, stably."""
        f, h, w = coordinates(grid).unbind(-1)
        wide = self.tile_width
        assert wide is not None
        boxes = (f // self.tile_frames, h // self.tile_height, w // wide)
        across, down = (grid.width // wide + 1, grid.height // self.tile_height + 1)
        return _with_text(
            ((boxes[0] * down + boxes[1]) * across + boxes[2]).argsort(stable=True), grid
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Residues(StaticOrder):
    """Every so-many-th token of each axis together, box by box in each such part.

    The keys of a dilated window (NATTEN, arXiv 2504.16922) then fill blocks; without dilation it is
    the order of ``Tile``.

    Attributes:
        tile_frames: Latent frames of a box, counted in its part.
        tile_height: Rows of a box.
        tile_width: Columns of a box.
        dilation_frames: So many parts along the frames.
        dilation_height: So many parts along the rows.
        dilation_width: So many parts along the columns.
    """

    tile_frames: int = 2
    tile_height: int = 8
    tile_width: int = 8
    dilation_frames: int = 1
    dilation_height: int = 1
    dilation_width: int = 1

    def __post_init__(self) -> None:
        for axis in ("frames", "height", "width"):
            check_sizes(self, f"tile_{axis}", f"dilation_{axis}")

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Sort by part and box, stably."""
        place = coordinates(grid)
        dilation = torch.tensor([self.dilation_frames, self.dilation_height, self.dilation_width])
        tile = torch.tensor([self.tile_frames, self.tile_height, self.tile_width])
        keys = torch.cat([place % dilation, place // dilation // tile], dim=-1)
        index = torch.zeros(len(place), dtype=torch.int64)
        for column in keys.unbind(-1):
            index = index * (int(column.max()) + 1) + column
        return _with_text(index.argsort(stable=True), grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hilbert(StaticOrder):
    """Along a 3-D Hilbert curve: tokens near on the curve are near in frame, row and column.

    The curve fills the smallest cube of a power of two around the grid; cells outside are skipped.
    """

    @property
    def spreads_frames(self) -> bool:
        """Whether the tokens of one frame stand in nearly every block."""
        return True

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Sort by the distance along the curve, which leaves out axes of one cell."""
        points = coordinates(grid)
        points = points[:, points.amax(dim=0) > 0]
        if not points.shape[1]:
            return None
        return _with_text(hilbert_index(points).argsort(stable=True), grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes(StaticOrder):
    """Nested loops over frame, height and width in another nesting: PAROAttention, 2506.16054.

    Attributes:
        axes: The outer axis first: fhw is raster, hwf puts all frames of a place side by side.
    """

    axes: str = "hwf"

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise BadInputError(f"axes must be one of {', '.join(AXES)}, got {self.axes!r}")

    @property
    def spreads_frames(self) -> bool:
        """Whether the tokens of one frame stand in nearly every block."""
        return self.axes[0] != "f"

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Transpose the grid."""
        if self.axes == "fhw":
            return None
        raster = torch.arange(grid.video_tokens).view(grid.frames, grid.height, grid.width)
        return _with_text(raster.permute(*("fhw".index(a) for a in self.axes)).flatten(), grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle(StaticOrder):
    """Boxes that reach through time, then the plane, then all three: VMoBA, arXiv 2506.23858.

    One of the three is taken by the caller; see ``in_layer``.

    Attributes:
        chunk_frames: Latent frames of the boxes of the first and third kind.
        chunk_height: Rows of the boxes of the second and third kind.
        chunk_width: Columns of the boxes of the second and third kind.
    """

    chunk_frames: int = 2
    chunk_height: int = 4
    chunk_width: int = 16

    per_layer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sizes(self, "chunk_frames", "chunk_height", "chunk_width")

    def in_layer(self, layer: int, grid: TokenGrid) -> Tile:
        """The boxes of a layer."""
        sizes = [
            (self.chunk_frames, grid.height, grid.width),
            (grid.frames, self.chunk_height, self.chunk_width),
            (self.chunk_frames, self.chunk_height, self.chunk_width),
        ]
        frames, height, width = sizes[layer % 3]
        return Tile(tile_frames=frames, tile_height=height, tile_width=width)

    def arrange(self, inputs: Inputs) -> Arranged:
        """Permute as this layer does."""
        return self.in_layer(inputs.layer, inputs.blocks.grid).arrange(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkerboard(StaticOrder):
    """Every other token, by the sum of frame, row and column, before those in between.

    And of each half every other one first, three times over: the first half, quarter or eighth of
    the sequence is a checkerboard of a stride of 2, 4 or 8.
    """

    @property
    def spreads_frames(self) -> bool:
        """Whether the tokens of one frame stand in nearly every block."""
        return True

    def positions(self, grid: TokenGrid) -> Tensor | None:
        """Sort by the sum modulo 8, its bits turned round, stably."""
        left = coordinates(grid).sum(dim=-1) % 8
        turned = (left & 1) * 4 + (left & 2) + (left >> 2)
        return _with_text(turned.argsort(stable=True), grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks(Order):
    """Boxes of time, of the plane and of both, by layer, each a block: VMoBA, arXiv 2506.23858.

    A block is a whole box, whatever its size; boxes at the end of an axis are smaller where they
    must be. Text is a block of its own at either end.

    Attributes:
        time_frames: Latent frames of the boxes of the first kind, which are whole frames.
        plane_height: Rows of the boxes of the second kind, which reach through all frames.
        plane_width: Their columns.
        box_frames: Latent frames of the boxes of the third kind.
        box_height: Their rows.
        box_width: Their columns.
    """

    time_frames: int = 2
    plane_height: int = 3
    plane_width: int = 4
    box_frames: int = 4
    box_height: int = 6
    box_width: int = 4

    static: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sizes(self, *(field.name for field in dataclasses.fields(self)))

    @property
    def learned(self) -> bool:
        """Boxes are of the grid alone."""
        return False

    @property
    def clusters_queries(self) -> bool:
        """Blocks are boxes."""
        return True

    @property
    def clusters_keys(self) -> bool:
        """Blocks are boxes."""
        return True

    def in_layer(self, layer: int, grid: TokenGrid) -> Tile:
        """The boxes of a layer."""
        sizes = [
            (self.time_frames, grid.height, grid.width),
            (grid.frames, self.plane_height, self.plane_width),
            (self.box_frames, self.box_height, self.box_width),
        ]
        frames, height, width = sizes[layer % 3]
        return Tile(tile_frames=frames, tile_height=height, tile_width=width)

    def arrange(self, inputs: Inputs) -> Arranged:
        """Permute as this layer does, and say where boxes start."""
        blocks, tile = inputs.blocks, self.in_layer(inputs.layer, inputs.blocks.grid)
        order = cached_positions(tile, blocks.grid, blocks.device)
        arranged = Arranged(inputs) if order is None else in_order(inputs, order)
        starts = cached_starts(tile, blocks.grid, blocks.device)
        found = dataclasses.replace(
            arranged.inputs.blocks, order=None, q_offsets=starts, kv_offsets=starts
        )
        return arranged._replace(inputs=dataclasses.replace(arranged.inputs, blocks=found))

    def again(self, inputs: Inputs) -> Arranged:
        """Permute as this layer does: the order does not change."""
        return self.arrange(inputs)

    def block_counts(
        self, grid: TokenGrid, block: int, key_block: int | None = None
    ) -> tuple[int, int]:
        """How many boxes there are, text among them, in the layers with the most."""
        numbers = [
            cached_starts(self.in_layer(layer, grid), grid, torch.device("cpu")).shape[-1] - 1
            for layer in range(3)
        ]
        return max(numbers), max(numbers)


@functools.lru_cache(maxsize=32)
def cached_starts(tile: Tile, grid: TokenGrid, device: torch.device) -> Tensor:
    """Where the boxes of a tile order start, and the last ends, int32 ``(1, 1, boxes + 1)``."""
    edges = [
        torch.tensor([min(size, length - at) for at in range(0, length, size)])
        for length, size in (
            (grid.frames, tile.tile_frames),
            (grid.height, tile.tile_height),
            (grid.width, tile.tile_width or grid.width),
        )
    ]
    sizes = (edges[0][:, None, None] * edges[1][:, None] * edges[2]).flatten().tolist()
    sizes = [size for size in (grid.prefix, *sizes, grid.suffix) if size]
    with torch.inference_mode(False):
        starts = torch.tensor([0, *sizes]).cumsum(dim=0).to(torch.int32)
        return starts[None, None].to(device)


def coordinates(grid: TokenGrid) -> Tensor:
    """Frame, row and column of each video token in raster order, int64 ``(video_tokens, 3)``."""
    axes = [torch.arange(n) for n in (grid.frames, grid.height, grid.width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def _with_text(video: Tensor, grid: TokenGrid) -> Tensor:
    """The order of all tokens, given that of the video tokens among themselves."""
    before = torch.arange(grid.prefix)
    after = torch.arange(grid.prefix + grid.video_tokens, grid.tokens)
    return torch.cat([before, video + grid.prefix, after]).to(torch.int32)


def hilbert_index(points: Tensor) -> Tensor:
    """Distance along a Hilbert curve of each point, int64 ``(n,)``.

    Skilling's transform (AIP Conf. Proc. 707, 381, 2004): coordinates become the transposed digits
    of the distance by undoing the curve's rotations one bit plane after another.

    Args:
        points: Non-negative coordinates, int64 ``(n, axes)``.
    """
    bits = max(1, int(points.max()).bit_length())
    axes = [axis.clone() for axis in points.unbind(-1)]
    plane = 1 << (bits - 1)
    while plane > 1:
        low = plane - 1
        for i, axis in enumerate(axes):
            is_set = (axis & plane) != 0
            swapped = (axes[0] ^ axis) & low
            flipped = torch.where(is_set, axes[0] ^ low, axes[0] ^ swapped)
            axes[i] = torch.where(is_set, axis, axis ^ swapped) if i else axis
            axes[0] = flipped
        plane >>= 1
    for i in range(1, len(axes)):  # Gray code
        axes[i] = axes[i] ^ axes[i - 1]
    flip = torch.zeros_like(axes[0])
    plane = 1 << (bits - 1)
    while plane > 1:
        flip = torch.where((axes[-1] & plane) != 0, flip ^ (plane - 1), flip)
        plane >>= 1
    axes = [axis ^ flip for axis in axes]
    index = torch.zeros_like(axes[0])
    for bit in reversed(range(bits)):
        for axis in axes:
            index = (index << 1) | ((axis >> bit) & 1)
    return index
