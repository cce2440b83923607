"""Mass from means: of blocks (draft), of clusters, and of parts of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.block_scores import block_mass
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled(Estimator):
    """Low-resolution attention: ``score = scale * mean(q) . mean(k) + ln(size of the block)``.

    Of equal blocks it is DraftAttention (arXiv 2505.14708), of clusters the centroid scores of SVG2
    (arXiv 2505.18875).
    """

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    takes_clusters: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.LOG_MASS

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by its low-resolution attention, ``(batch, heads, M, N)``."""
        return Estimate(scores=pooled_mass(inputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class SubBlock(Estimator):
    """Log of the summed mass between means of parts, which keep what a block's mean averages away.

    Attributes:
        parts: Into how many parts a block is cut: 1, 2, 4, 8 or 16.
    """

    parts: int = 4

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    takes_clusters: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.LOG_MASS

    def __post_init__(self) -> None:
        if self.parts not in (1, 2, 4, 8, 16):
            raise BadInputError(f"parts must be 1, 2, 4, 8 or 16, got {self.parts}")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by its estimated mass, ``(batch, heads, M, N)``."""
        return Estimate(scores=subblock_mass(inputs, self.parts))


def pooled_mass(inputs: Inputs) -> Tensor:
    """Log-mass from the means of blocks or clusters; an empty cluster has none."""
    sizes = inputs.blocks.kv_sizes
    return inputs.q_means @ inputs.k_means.mT * inputs.scale + sizes.log().unsqueeze(-2)


def subblock_mass(inputs: Inputs, parts: int) -> Tensor:
    """Log-mass from the means of parts of equal blocks; clusters have no parts but themselves.

    Smaller blocks of keys have fewer parts, of as many tokens.
    """
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    if blocks.q_offsets is not None or blocks.kv_offsets is not None or parts == 1:
        return pooled_mass(inputs)
    of_keys = math.gcd(parts, max(1, parts * blocks.kv_block // blocks.block))
    query, q_sizes = _parts(q, blocks.block, parts, q.dtype, finite=True)
    key, k_sizes = _parts(k, blocks.kv_block, of_keys, q.dtype)
    return block_mass(query, key, q_sizes, k_sizes, scale=inputs.scale)


def _parts(
    x: Tensor, block: int, parts: int, dtype: torch.dtype, finite: bool = False
) -> tuple[Tensor, Tensor]:
    """Means of the parts of blocks, ``(batch, heads, N, parts, head_dim)``, and their sizes."""
    means = pool_blocks(x, block, parts=parts, dtype=dtype, finite=finite)
    means = means if parts > 1 else means.unsqueeze(3)
    return means, part_sizes(x.shape[2], block, parts, x.device)
