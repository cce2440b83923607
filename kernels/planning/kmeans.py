"""k-means over tokens (SVG2, arXiv 2505.18875): a fixed number of iterations, warm-started.

One iteration assigns each token to the nearest centroid (Euclidean, ties to the lower index) and
moves each centroid to the mean of its tokens; one without tokens stays. Nothing waits for the
device, so there is no test for convergence: from the centroids of the step before, two iterations
are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.planning.permute import order_by_label, permute_tokens
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
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Raises:
        BadInputError: For numbers out of range, or centroids of another shape.
    """
    if not 1 <= clusters <= MOST:
        raise BadInputError(f"clusters must be from 1 to {MOST}, got {clusters}")
    if iterations < 1:
        raise BadInputError(f"iterations must be at least 1, got {iterations}")
    shape = (*x.shape[:2], clusters, x.shape[3])
    if centroids is None:
        centroids = _draw(x, clusters, generator)
    elif tuple(centroids.shape) != shape:
        raise BadInputError(f"centroids must be {shape}, got {tuple(centroids.shape)}")
    step = _step_reference
    if use_triton(impl, x):
        from vidsparse.kernels.triton.kmeans import step
    centroids = only_finite(centroids.float()) if finite else centroids.float()
    labels, order, offsets, centroids = step(x, centroids, finite)
    for _ in range(iterations - 1):
        labels, order, offsets, centroids = step(x, centroids, finite)
    return Clusters(labels=labels, centroids=centroids, order=order, offsets=offsets)


def _draw(x: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    """Tokens to start from, distinct as long as there are enough."""
    positions = torch.randperm(x.shape[2], generator=generator)
    positions = positions[torch.arange(clusters) % x.shape[2]]
    return x[:, :, positions.to(x.device, non_blocking=True)]


def _step_reference(
    x: Tensor, centroids: Tensor, finite: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels under the centroids, the tokens' order and offsets by label, and new centroids."""
    clean = only_finite(x) if finite else x
    broken = None if clean is x else ~x.isfinite().all(dim=-1)
    x = clean
    rounded = centroids.to(x.dtype).float()  # as the kernel has them
    half = rounded.square().sum(dim=-1)[..., None, :] / 2
    parts = x.split(AT_ONCE, dim=2)
    labels = torch.cat([(p.float() @ rounded.mT - half).argmax(dim=-1) for p in parts], dim=2)
    if broken is not None:
        labels = torch.where(broken, half.argmin(dim=-1), labels)
    order, offsets = order_by_label(labels.int(), centroids.shape[2], impl="reference")
    means = pool_ragged(permute_tokens(x, order, impl="reference"), offsets, impl="reference")
    filled = offsets.diff(dim=-1)[..., None] > 0
    return labels.int(), order, offsets, torch.where(filled, means, centroids)
