"""k-means over tokens (SVG2, arXiv 2505.18875): a fixed number of iterations, warm-started.

One iteration assigns each token to the nearest centroid (Euclidean, ties to the lower index) and
moves each centroid to the mean of its tokens; one without tokens stays. Nothing waits for the
device, so there is no test for convergence: from the centroids of the step before, two iterations
are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.planning.multiples import Some, to_multiples
from vidsparse.kernels.planning.permute import (
    inverse_order,
    order_by_label,
    permute_tokens,
    sizes_by_label,
)
from vidsparse.kernels.planning.pooling import only_finite, pool_ragged

MOST = 4096  # clusters
AT_ONCE = 1024  # tokens whose scores are made together, so that they stay in a CPU's cache


@dataclass(frozen=True, eq=False, kw_only=True)
class Clusters:
    """A clustering of tokens.

    Attributes:
        labels: Cluster of each token, int32 ``(batch, heads, seq)``: of the last assignment.
        centroids: Mean of each cluster's tokens under these labels, float32
            ``(batch, heads, clusters, head_dim)``.
        order: Tokens sorted by label, stably, int32 ``(batch, heads, seq)``.
        offsets: Where each cluster starts in that order, int32 ``(batch, heads, clusters + 1)``; a
            plan's ``q_offsets`` or ``kv_offsets``.
    """

    labels: Tensor
    centroids: Tensor
    order: Tensor
    offsets: Tensor

    @property
    def sizes(self) -> Tensor:
        """Tokens in each cluster, int32 ``(batch, heads, clusters)``."""
        return self.offsets.diff(dim=-1)


def kmeans(
    x: Tensor,
    clusters: int,
    *,
    iterations: int,
    centroids: Tensor | None = None,
    generator: torch.Generator | None = None,
    finite: bool = False,
    multiple_of: int | None = None,
    impl: str = "auto",
) -> Clusters:
    """Cluster the tokens of each head.

    Args:
        x: ``(batch, heads, seq, head_dim)``, any strides.
        clusters: How many, from 1 to 4096.
        iterations: How often tokens are assigned and centroids moved, at least once.
        centroids: Where to start, ``(batch, heads, clusters, head_dim)``; tokens drawn at random,
            the same positions in every head, when None.
        generator: Draws them, on the CPU.
        finite: Take what is no number or infinite for zero; its token belongs where a token of
            zeros does.
        multiple_of: In the last iteration clusters are moved to sizes of such multiples, as
            ``to_multiples`` has it; those that are not come last, so that all others start at one.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Raises:
        BadInputError: For numbers out of range, or centroids of another shape.
    """
    if not 1 <= clusters <= MOST:
        raise BadInputError(f"clusters must be from 1 to {MOST}, got {clusters}")
    if iterations < 1:
        raise BadInputError(f"iterations must be at least 1, got {iterations}")
    if multiple_of is not None and multiple_of < 1:
        raise BadInputError(f"multiple_of must be at least 1, got {multiple_of}")
    shape = (*x.shape[:2], clusters, x.shape[3])
    if centroids is None:
        centroids = _draw(x, clusters, generator)
    elif tuple(centroids.shape) != shape:
        raise BadInputError(f"centroids must be {shape}, got {tuple(centroids.shape)}")
    if use_triton(impl, x):
        from vidsparse.kernels.triton.kmeans import assign, average
    else:
        assign, average = _assign, _average
    centroids = only_finite(centroids.float()) if finite else centroids.float()
    labels, scores = assign(x, centroids, finite)
    for _ in range(iterations - 1):
        order, offsets = order_by_label(labels, clusters, impl=impl)
        centroids = average(x, order, offsets, centroids, finite)
        labels, scores = assign(x, centroids, finite)
    if multiple_of is not None:
        nearest = partial(assign, x, centroids, finite)
        labels = to_multiples(labels, scores, clusters, multiple_of, nearest, impl=impl)
        labels, centroids = _whole_first(labels, centroids, multiple_of)
    order, offsets = order_by_label(labels, clusters, impl=impl)
    centroids = average(x, order, offsets, centroids, finite)
    return Clusters(labels=labels, centroids=centroids, order=order, offsets=offsets)


def _whole_first(labels: Tensor, centroids: Tensor, of: int) -> tuple[Tensor, Tensor]:
    """Clusters numbered anew: those of whole multiples, then the others, each as they were."""
    sizes = sizes_by_label(labels, centroids.shape[2])
    old = (sizes % of > 0).byte().argsort(dim=-1, stable=True)
    labels = inverse_order(old.int()).gather(-1, labels.long())
    return labels, centroids.gather(2, old[..., None].expand_as(centroids))


def _draw(x: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    """Tokens to start from, distinct as long as there are enough."""
    positions = torch.randperm(x.shape[2], generator=generator)
    positions = positions[torch.arange(clusters) % x.shape[2]]
    return x[:, :, positions.to(x.device, non_blocking=True)]


def _assign(
    x: Tensor, centroids: Tensor, finite: bool, some: Some | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each token, of all or of some, and its score.

    A score is ``x . c - |c|^2 / 2``: the more, the nearer.
    """
    clean = only_finite(x) if finite else x
    broken = None if clean is x else ~x.isfinite().all(dim=-1)
    rounded = centroids.to(x.dtype).float()  # as the kernel has them
    half = rounded.square().sum(dim=-1)[..., None, :] / 2
    if some is not None:
        half = half.masked_fill(~some.clusters[..., None, :], torch.inf)
    parts = clean.split(AT_ONCE, dim=2)
    found = [(part.float() @ rounded.mT - half).max(dim=-1) for part in parts]
    scores, labels = (torch.cat(each, dim=2) for each in zip(*found, strict=True))
    if broken is not None:
        least, of_zero = half.min(dim=-1)
        labels = torch.where(broken, of_zero, labels)
        scores = torch.where(broken, -least, scores)
    return labels.int(), scores


def _average(x: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, finite: bool) -> Tensor:
    """The mean of each cluster's tokens; one without any keeps its centroid."""
    tokens = permute_tokens(x, order, impl="reference")
    means = pool_ragged(tokens, offsets, finite=finite, impl="reference")
    filled = offsets.diff(dim=-1)[..., None] > 0
    return torch.where(filled, means, centroids)
