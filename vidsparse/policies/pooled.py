"""Mass from means: of blocks (draft), of clusters, and of parts of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.block_scores import Biases, block_mass, part_biases
from vidsparse.kernels.planning.pooling import part_sizes, pool_blocks
from vidsparse.policies.blocks import Blocks
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
    query = _parts(q, blocks.block, parts, q.dtype, finite=True)
    key = _parts(k, blocks.kv_block, of_keys, q.dtype)
    sizes, biases = _of_parts(blocks, parts, of_keys)
    return block_mass(query, key, *sizes, scale=inputs.scale, biases=biases)


def _of_parts(blocks: Blocks, parts: int, of_keys: int) -> tuple[tuple[Tensor, Tensor], Biases]:
    """Sizes of the parts of blocks, of queries and of keys, and what they add to scores."""
    tokens, device = blocks.grid.tokens, blocks.device

    def made() -> tuple[tuple[Tensor, Tensor], Biases]:
        of_queries = part_sizes(tokens, blocks.block, parts, device)
        sizes = of_queries, part_sizes(tokens, blocks.kv_block, of_keys, device)
        return sizes, part_biases(*sizes)

    return blocks.kept.get(("parts", parts, of_keys), made)


def _parts(x: Tensor, block: int, parts: int, dtype: torch.dtype, finite: bool = False) -> Tensor:
    """Means of the parts of blocks, ``(batch, heads, N, parts, head_dim)``."""
    means = pool_blocks(x, block, parts=parts, dtype=dtype, finite=finite)
    return means if parts > 1 else means.unsqueeze(3)
