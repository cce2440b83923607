"""Semantic order: tokens of like content side by side, by k-means (SVG2, arXiv 2505.18875)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.kmeans import MOST, Clusters, kmeans
from vidsparse.kernels.planning.permute import (
    in_token_order,
    inverse_order,
    order_by_label,
    permute_together,
    permute_tokens,
)
from vidsparse.kernels.planning.pooling import only_finite, pool_blocks, pool_ragged
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged, Order, Tile, cached_positions

MEMBERS = 4  # tokens that a cluster is remembered by
FEWEST_TOKENS = 16  # in a cluster, in the mean
KEYS_AT_ONCE = 16  # that kernels copy together


class Sides(StrEnum):
    """What is clustered.

    Attributes:
        BOTH: Queries and, independently, keys.
        KEYS: Keys; queries stand in boxes, cut into equal blocks.
        QUERIES: Queries; keys stand in boxes, cut into equal blocks.
    """

    BOTH = "both"
    KEYS = "keys"
    QUERIES = "queries"


class Start(StrEnum):
    """Where k-means starts at the first call of a generation.

    Attributes:
        TOKENS: From tokens drawn at random.
        TILES: From the means of runs of tokens in boxes of 8 x 8.
    """

    TOKENS = "tokens"
    TILES = "tiles"


class Remembered(StrEnum):
    """What a cluster is remembered by from one step to the next.

    Attributes:
        MEMBERS: By a few of its tokens, whose mean is taken as they then are.
        CENTROIDS: By its centroid, in host memory: a hundred times as many bytes.
    """

    MEMBERS = "members"
    CENTROIDS = "centroids"


Side = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of queries or of keys: their order, the offsets of their clusters, and the means if known."""
GROUPS = {1: (1, 1, 1), 2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2)}  # boxes of tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantic(Order):
    """Clusters of queries and, independently, of keys; each cluster is a block of its own size.

    Clusters of one side alone cost half, and then the other side's blocks are equal.

    The first call of a generation starts as ``start`` says. Later ones start where the
    clusters of the step before are now: at the mean of a few of their members, which costs a
    hundredth of the memory of centroids and follows the tokens as they change; or, as SVG2
    publishes it, at the centroids of that step (``remembered``). A call that is told
    to remember leaves the labels of its tokens for the other guidance branch, a byte or two each,
    in host memory.

    Attributes:
        q_clusters: Of queries; None takes as many as there would be blocks. Fewer where there are
            not 16 tokens for each.
        kv_clusters: Of keys, likewise; None takes twice as many as there would be blocks.
        first_iterations: Of k-means at the first call.
        iterations: Of k-means at later calls.
        seed: Of the first draw.
        start: Where the first call starts: tokens drawn at random, or means of boxes, from which
            5 iterations find what 50 from tokens do.
        group: Tokens that are clustered as one, by their mean: 1, 2 side by side, 4 in a square or
            8 in a cube. k-means then costs as many times less.
        sides: What is clustered; the other side stands box by box and is cut into equal blocks.
        remembered: What later calls start from.
        fill_tiles: Clusters give tokens to one another until most fill what kernels compute and
            copy at once: blocks of queries, and 16 keys.
        while_dense: Cluster at the dense steps before too, so that the many iterations of the first
            call are behind the run when it becomes sparse.
        tile_frames: Latent frames of a box of that other side.
        tile_height: Rows of a box, in tokens.
        tile_width: Columns of a box, in tokens; None takes as many as fill a block.
    """

    q_clusters: int | None = 100
    kv_clusters: int | None = 500
    first_iterations: int = 50
    iterations: int = 2
    seed: int = 0
    start: Start = Start.TOKENS
    group: int = 1
    sides: Sides = Sides.BOTH
    remembered: Remembered = Remembered.MEMBERS
    fill_tiles: bool = False
    while_dense: bool = False
    tile_frames: int = 1
    tile_height: int = 8
    tile_width: int | None = None

    static: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _ = self.tile  # checks its sizes
        for name in ("q_clusters", "kv_clusters"):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= MOST:
                raise BadInputError(f"{name} must be from 1 to {MOST}, got {number}")
        if self.group not in GROUPS:
            raise BadInputError(f"group must be 1, 2, 4 or 8, got {self.group}")
        check_sizes(self, "first_iterations", "iterations")

    @property
    def tile(self) -> Tile:
        """The boxes of the side that is not clustered."""
        return Tile(
            tile_frames=self.tile_frames, tile_height=self.tile_height, tile_width=self.tile_width
        )

    @property
    def clusters_queries(self) -> bool:
        """Whether queries are clustered."""
        return self.sides is not Sides.KEYS

    @property
    def clusters_keys(self) -> bool:
        """Whether keys are."""
        return self.sides is not Sides.QUERIES

    def idle(self, density: float | None) -> Mapping[str, str]:
        """Boxes belong to the side that is not clustered."""
        found: dict[str, str] = {}
        if self.start is Start.TILES:
            found["seed"] = "nothing is drawn at random (start=tiles)"
        if self.sides is Sides.BOTH:
            boxes = ("tile_frames", "tile_height", "tile_width")
            own = "queries and keys both stand in clusters (sides=both)"
            return found | dict.fromkeys(boxes, own)
        other = "kv_clusters" if self.sides is Sides.QUERIES else "q_clusters"
        return found | {other: f"clusters are of {self.sides} alone (sides={self.sides})"}

    @property
    def counts_blocks(self) -> bool:
        """Whether there are as many clusters of a side as there would be blocks, or twice."""
        queries = self.clusters_queries and self.q_clusters is None
        return queries or (self.clusters_keys and self.kv_clusters is None)

    @property
    def fills_tiles(self) -> bool:
        """Whether clusters are moved to sizes of whole blocks, and of 16 keys."""
        return self.fill_tiles

    @property
    def learns_while_dense(self) -> bool:
        """Whether ``learn`` is to be called at dense steps."""
        return self.while_dense

    def learn(self, inputs: Inputs) -> None:
        """Cluster, once a step: what the next call starts from."""
        q, k, _ = inputs.qkv
        numbers = self.clusters(inputs.blocks.grid, inputs.blocks.block)
        for name, x, number in zip("qk", (q, k), numbers, strict=True):
            if number and inputs.common.age(self._kept(name), inputs.step) != 0:
                self._side(name, x, number, inputs)

    def _kept(self, name: str) -> str:
        """The name that the clusters of "q" or of "k" are remembered under."""
        return f"{name} {self.remembered}"

    def arrange(self, inputs: Inputs) -> Arranged:
        """Cluster, and put tokens in the order of their clusters."""
        q, k, _ = inputs.qkv

        def side(name: str, number: int) -> Side:
            return self._side(name, q if name == "q" else k, number, inputs)

        return self._arranged(inputs, side)

    def again(self, inputs: Inputs) -> Arranged:
        """Put tokens in the order of the clusters that they were in at the latest call."""
        return self._arranged(inputs, lambda name, number: _same_side(name, number, inputs))

    def _arranged(self, inputs: Inputs, side: Callable[[str, int], Side]) -> Arranged:
        """In the clusters that ``side`` gives of "q" or of "k", or in boxes."""
        q, k, v = inputs.qkv
        grid = inputs.blocks.grid
        boxes = (
            cached_positions(self.tile.fitted(inputs.blocks.block), grid, inputs.blocks.device),
            None,
            None,
        )
        numbers = self.clusters(grid, inputs.blocks.block)
        queries = side("q", numbers[0]) if self.clusters_queries else boxes
        keys = side("k", numbers[1]) if self.clusters_keys else boxes
        (q_order, q_offsets, q_means), (kv_order, kv_offsets, k_means) = queries, keys
        blocks = dataclasses.replace(inputs.blocks, q_offsets=q_offsets, kv_offsets=kv_offsets)
        k, v = (k, v) if kv_order is None else permute_together((k, v), kv_order)
        arranged = dataclasses.replace(
            inputs, q=in_token_order(q, q_order), k=k, v=v, blocks=blocks
        ).knowing_means(q=q_means, k=k_means)
        return Arranged(arranged, q_order, kv_order)

    def clusters(self, grid: TokenGrid, block: int) -> tuple[int, int]:
        """How many clusters of queries and of keys there are on a grid, text not counted.

        Args:
            grid: The tokens.
            block: Tokens that a block has there.
        """
        most = max(1, min(MOST, grid.video_tokens // FEWEST_TOKENS))
        blocks = -(-grid.video_tokens // block)
        queries = blocks if self.q_clusters is None else self.q_clusters
        keys = 2 * blocks if self.kv_clusters is None else self.kv_clusters
        return (
            min(queries, most) if self.clusters_queries else 0,
            min(keys, most) if self.clusters_keys else 0,
        )

    def block_counts(
        self, grid: TokenGrid, block: int, key_block: int | None = None
    ) -> tuple[int, int]:
        """How many blocks of queries and of keys there are, text among them."""
        text = (grid.prefix > 0) + (grid.suffix > 0)
        clusters, equal = self.clusters(grid, block), (block, key_block or block)
        queries, keys = (
            number + text if number else -(-grid.tokens // size)
            for number, size in zip(clusters, equal, strict=True)
        )
        return queries, keys

    def state_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers on the device: the members of its clusters."""
        is_here = self.remembered is Remembered.MEMBERS
        return sum(self.clusters(grid, block)) * MEMBERS * 4 if is_here else 0

    def parked_bytes(self, grid: TokenGrid, block: int, head_dim: int) -> int:
        """Bytes a head always remembers in host memory: centroids in float32."""
        is_here = self.remembered is Remembered.MEMBERS
        return 0 if is_here else sum(self.clusters(grid, block)) * head_dim * 4

    def label_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers in host memory: the labels of its tokens."""
        sides = [_label_type(number).itemsize for number in self.clusters(grid, block) if number]
        return sum(sides) * grid.video_tokens

    def _side(self, name: str, x: Tensor, number: int, inputs: Inputs) -> Side:
        """Order, offsets and means of queries or of keys, text in clusters of its own."""
        grid = inputs.blocks.grid
        video = x[:, :, grid.prefix : grid.prefix + grid.video_tokens]
        box, grouped = self._boxes(grid, x.device), video
        if box is not None:
            means = pool_blocks(permute_tokens(video, box), self.group, finite=True)
            grouped = means.to(video.dtype)
        full = inputs.blocks.block if name == "q" else KEYS_AT_ONCE
        tile = max(1, full // self.group) if self.fill_tiles else None
        kept = inputs.common.get(self._kept(name))
        if kept is None:
            clusters = self._first(grouped, number, grid, tile)
        else:
            is_mean = self.remembered is Remembered.CENTROIDS
            start = kept if is_mean else mean_of(grouped, kept)
            clusters = kmeans(
                grouped, number, iterations=self.iterations, centroids=start, finite=True,
                multiple_of=tile,
            )  # fmt: skip
        if self.remembered is Remembered.CENTROIDS:
            inputs.common.park(self._kept(name), clusters.centroids, inputs.step)
        else:
            inputs.common.put(self._kept(name), members_of(clusters), inputs.step)
        labels, order, offsets = clusters.labels, clusters.order, clusters.offsets
        if box is not None:
            each = labels.repeat_interleave(self.group, dim=-1)[..., : video.shape[2]]
            labels = each.gather(-1, inverse_order(box).long().expand(each.shape))
            order, offsets = order_by_label(labels, number)
        if inputs.remember:
            inputs.common.park(f"{name} labels", labels.to(_label_type(number)), inputs.step)
        order, offsets = with_text(order, offsets, grid)
        return order, offsets, _means(x, clusters, grid) if box is None else None

    def _boxes(self, grid: TokenGrid, device: torch.device) -> Tensor | None:
        """The order in which tokens that are clustered as one stand side by side."""
        if self.group == 1:
            return None
        frames, height, width = GROUPS[self.group]
        tile = Tile(tile_frames=frames, tile_height=height, tile_width=width)
        return cached_positions(tile, dataclasses.replace(grid, prefix=0, suffix=0), device)

    def _first(self, x: Tensor, number: int, grid: TokenGrid, tile: int | None) -> Clusters:
        """The clusters of a first call."""
        generator, centroids = None, None
        if self.start is Start.TOKENS:
            generator = torch.Generator().manual_seed(self.seed)
        else:
            centroids = self._means_of_boxes(x, number, grid)
        return kmeans(
            x, number, iterations=self.first_iterations, centroids=centroids, generator=generator,
            finite=True, multiple_of=tile,
        )  # fmt: skip

    def _means_of_boxes(self, x: Tensor, number: int, grid: TokenGrid) -> Tensor:
        """Of as many runs of tokens, box by box; groups stand in small boxes as they are."""
        if self.group == 1:
            video = dataclasses.replace(grid, prefix=0, suffix=0)
            x = in_token_order(x, cached_positions(Tile(tile_width=8), video, x.device))
        edges = torch.arange(number + 1, dtype=torch.int64, device=x.device) * x.shape[2] // number
        return pool_ragged(x, edges.to(torch.int32)[None, None], finite=True)


def _means(x: Tensor, clusters: Clusters, grid: TokenGrid) -> Tensor:
    """Mean of each cluster and of the text before and after; zero of one without tokens."""
    means = clusters.centroids.masked_fill((clusters.sizes == 0)[..., None], 0.0)
    before, _, after = x.split([grid.prefix, grid.video_tokens, grid.suffix], dim=2)
    text = [
        only_finite(end).mean(dim=2, keepdim=True, dtype=torch.float32) if end.shape[2] else end
        for end in (before, after)
    ]
    return torch.cat([text[0], means, text[1]], dim=2)


def _label_type(clusters: int) -> torch.dtype:
    return torch.uint8 if clusters <= 256 else torch.int16


def _same_side(name: str, number: int, inputs: Inputs) -> Side:
    """The order and the offsets that the remembered labels give."""
    labels = inputs.common.get(f"{name} labels")
    assert labels is not None
    return *with_text(*order_by_label(labels.int(), number), inputs.blocks.grid), None


def members_of(clusters: Clusters, number: int = MEMBERS) -> Tensor:
    """A few tokens of each cluster, int32 ``(batch, heads, clusters, number)``.

    An empty cluster gets the tokens that stand where it would.
    """
    share = (torch.arange(number, device=clusters.order.device) + 0.5) / number
    start = clusters.offsets[..., :-1, None]
    at = (start + (share * clusters.sizes[..., None]).int()).clamp(max=clusters.order.shape[-1] - 1)
    return clusters.order.gather(-1, at.flatten(-2).long()).view(at.shape)


def mean_of(x: Tensor, members: Tensor) -> Tensor:
    """Mean of the members of each cluster, ``(batch, heads, clusters, head_dim)``."""
    rows = members.flatten(-2).long()[..., None].expand(-1, -1, -1, x.shape[-1])
    chosen = only_finite(x.gather(2, rows)).float()
    return chosen.unflatten(2, members.shape[2:]).mean(dim=3)


def with_text(order: Tensor, offsets: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """Order and offsets of all tokens, given those of the video tokens."""
    order, offsets = order + grid.prefix, offsets + grid.prefix
    shape, device = order.shape[:2], order.device

    def run(start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, dtype=torch.int32, device=device).expand(*shape, -1)

    end = grid.prefix + grid.video_tokens
    if grid.prefix:
        order = torch.cat([run(0, grid.prefix), order], dim=-1)
        offsets = torch.cat([run(0, 1), offsets], dim=-1)
    if grid.suffix:
        order = torch.cat([order, run(end, grid.tokens)], dim=-1)
        offsets = torch.cat([offsets, run(grid.tokens, grid.tokens + 1)], dim=-1)
    return order, offsets
