"""Mass from exact scores: of all query rows, or of a few drawn at random in each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.antidiagonal import antidiagonal_scores
from vidsparse.kernels.planning.exact_mass import exact_mass
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure

LSE = "log-sum-exp of the first search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(Estimator):
    """The attention mass of each block, from exact scores: AdaSpa (arXiv 2502.21079), our samples.

    Attributes:
        rows: Query rows drawn at random in each block, anew in every layer and step; 0 takes all,
            which costs about half of dense attention on a GPU.
        cached_lse: Later searches of a run divide by each row's sum of the first, as AdaSpa does:
            rows whose sums have grown since weigh more in their block.
    """

    rows: int = 0
    cached_lse: bool = False

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.LOG_MASS

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise BadInputError(f"rows must be at least 0, got {self.rows}")

    def idle(self, density: float | None) -> Mapping[str, str]:
        """Rows that are drawn anew have no sums of an earlier step."""
        if not self.rows:
            return {}
        return {"cached_lse": "rows are drawn anew at every step (rows=0 takes all)"}

    def parked_bytes(self, grid: TokenGrid) -> int:
        """A float32 for every row."""
        return 4 * grid.tokens if self.cached_lse and not self.rows else 0

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the log of its mass, ``(batch, heads, M, N)``."""
        if self.rows or not self.cached_lse:
            return Estimate(scores=sampled_mass(inputs, self.rows).log())
        blocks, (q, k, _), first = inputs.blocks, inputs.qkv, inputs.common.get(LSE)
        mass, lse = exact_mass(
            only_finite(q), k, q_block=blocks.block, kv_block=blocks.kv_block, scale=inputs.scale,
            lse=first,
        )  # fmt: skip
        if first is None:
            inputs.common.park(LSE, lse, inputs.step)
        return Estimate(scores=mass.log())


@dataclass(frozen=True, slots=True, kw_only=True)
class Antidiagonal(Estimator):
    """A strided sample of the scores of every block: XAttention, arXiv 2503.16428.

    Attributes:
        stride: Tokens in a group; a power of two that divides the block.
    """

    stride: int = 8

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = False
    measure: ClassVar[Measure] = Measure.LOG_MASS

    def __post_init__(self) -> None:
        if self.stride not in (2, 4, 8, 16):
            raise BadInputError(f"stride must be 2, 4, 8 or 16, got {self.stride}")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by the log of its sampled mass, ``(batch, heads, M, N)``."""
        q, k, _ = inputs.qkv
        mass = antidiagonal_scores(
            only_finite(q), k, block=inputs.blocks.block, stride=self.stride, scale=inputs.scale
        )
        return Estimate(scores=mass.log())


def sampled_mass(inputs: Inputs, rows: int) -> Tensor:
    """Mean attention of query blocks to key blocks, from exact scores.

    Args:
        inputs: Of equal blocks.
        rows: Query rows drawn in each block, with repetition where a block is short; 0 for all.

    Returns:
        Float32 ``(batch, heads, M, N)``; rows sum to one.
    """
    blocks, (q, k, _) = inputs.blocks, inputs.qkv
    if rows:
        q = q[:, :, _sampled_rows(inputs, rows).flatten()]
    mass, _ = exact_mass(
        only_finite(q), k, q_block=rows or blocks.block, kv_block=blocks.kv_block,
        scale=inputs.scale,
    )  # fmt: skip
    return mass


def _sampled_rows(inputs: Inputs, rows: int) -> Tensor:
    """Which query rows stand for each block, ``(M, rows)``."""
    blocks = inputs.blocks
    start = torch.arange(blocks.number) * blocks.block
    sizes = (blocks.grid.tokens - start).clamp(max=blocks.block)
    generator = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
    drawn = torch.rand(blocks.number, rows, generator=generator)
    return (start[:, None] + (drawn * sizes[:, None]).long()).to(blocks.device, non_blocking=True)
