"""Semantic order: tokens of like content side by side, by k-means (SVG2, arXiv 2505.18875)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.kmeans import Clusters, kmeans
from vidsparse.kernels.permute import order_by_label, permute_tokens
from vidsparse.kernels.pooling import only_finite
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged, Order

MEMBERS = 4  # tokens that a cluster is remembered by


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantic(Order):
    """Clusters of queries and, independently, of keys; each cluster is a block of its own size.

    The first call of a generation starts from tokens drawn at random. Later ones start where the
    clusters of the step before are now: at the mean of a few of their members, which costs a
    hundredth of the memory of centroids and follows the tokens as they change. A call that is told
    to remember leaves the labels of its tokens for the other guidance branch, a byte or two each,
    in host memory.

    Attributes:
        q_clusters: Of queries; fewer where there are not 16 tokens for each.
        kv_clusters: Of keys, likewise. Key clusters cost little, query clusters speed.
        first_iterations: Of k-means at the first call.
        iterations: Of k-means at later calls.
        seed: Of the first draw.
    """

    q_clusters: int = 100
    kv_clusters: int = 500
    first_iterations: int = 50
    iterations: int = 2
    seed: int = 0

    static: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("q_clusters", "kv_clusters"):
            if not 1 <= getattr(self, name) <= 4096:
                raise BadInputError(f"{name} must be from 1 to 4096, got {getattr(self, name)}")
        for name in ("first_iterations", "iterations"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def arrange(self, inputs: Inputs) -> Arranged:
        """Cluster, and put tokens in the order of their clusters."""
        q, k, _ = inputs.qkv
        numbers = self.clusters(inputs.blocks.grid)
        *queries, q_means = self._side("q", q, numbers[0], inputs)
        *keys, k_means = self._side("k", k, numbers[1], inputs)
        arranged = self._arranged(inputs, tuple(queries), tuple(keys))
        arranged.inputs.knowing_means(q=q_means, k=k_means)
        return arranged

    def again(self, inputs: Inputs) -> Arranged:
        """Put tokens in the order of the clusters that they were in at the latest call."""
        numbers = self.clusters(inputs.blocks.grid)
        sides = zip("qk", numbers, strict=True)
        return self._arranged(inputs, *(_same_side(name, n, inputs) for name, n in sides))

    def _arranged(
        self, inputs: Inputs, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...]
    ) -> Arranged:
        q, k, v = inputs.qkv
        (q_order, q_offsets), (kv_order, kv_offsets) = queries, keys
        blocks = dataclasses.replace(inputs.blocks, q_offsets=q_offsets, kv_offsets=kv_offsets)
        arranged = dataclasses.replace(
            inputs,
            q=permute_tokens(q, q_order),
            k=permute_tokens(k, kv_order),
            v=permute_tokens(v, kv_order),
            blocks=blocks,
        )
        return Arranged(arranged, q_order, kv_order)

    def clusters(self, grid: TokenGrid) -> tuple[int, int]:
        """How many clusters of queries and of keys there are on a grid, text not counted."""
        most = max(1, grid.video_tokens // 16)
        return min(self.q_clusters, most), min(self.kv_clusters, most)

    def block_counts(self, grid: TokenGrid, block: int) -> tuple[int, int]:
        """How many clusters of queries and of keys there are, text among them."""
        text = (grid.prefix > 0) + (grid.suffix > 0)
        queries, keys = self.clusters(grid)
        return queries + text, keys + text

    def state_bytes(self, grid: TokenGrid) -> int:
        """Bytes a head remembers on the device: the members of its clusters."""
        return sum(self.clusters(grid)) * MEMBERS * 4

    def label_bytes(self, grid: TokenGrid) -> int:
        """Bytes a head remembers in host memory: the labels of its tokens."""
        return sum(_label_type(n).itemsize for n in self.clusters(grid)) * grid.video_tokens

    def _side(
        self, name: str, x: Tensor, number: int, inputs: Inputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Order, offsets and means of queries or of keys, text in clusters of its own."""
        grid = inputs.blocks.grid
        video = x[:, :, grid.prefix : grid.prefix + grid.video_tokens]
        members = inputs.common.get(f"{name} members")
        if members is None:
            generator = torch.Generator().manual_seed(self.seed)
            clusters = kmeans(
                video, number, iterations=self.first_iterations, generator=generator, finite=True
            )
        else:
            start = mean_of(video, members)
            clusters = kmeans(
                video, number, iterations=self.iterations, centroids=start, finite=True
            )
        inputs.common.put(f"{name} members", members_of(clusters), inputs.step)
        if inputs.remember:
            labels = clusters.labels.to(_label_type(number))
            inputs.common.park(f"{name} labels", labels, inputs.step)
        order, offsets = with_text(clusters.order, clusters.offsets, grid)
        return order, offsets, _means(x, clusters, grid)


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


def _same_side(name: str, number: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The order and the offsets that the remembered labels give."""
    labels = inputs.common.get(f"{name} labels")
    assert labels is not None
    return with_text(*order_by_label(labels.int(), number), inputs.blocks.grid)


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
