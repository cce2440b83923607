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
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure

LSE = "log-sum-exp of the first search"
AT_ONCE = 1 << 26  # scores held at a time: 256 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(Estimator):
    """The attention mass of each block, from exact scores: AdaSpa (arXiv 2502.21079), our samples.

    Attributes:
        rows: Query rows drawn at random in each block, anew in every layer and step; 0 takes all,
            which costs as much as dense attention.
        cached_lse: Later searches of a run divide by each row's sum of the first, as AdaSpa does:
            it saves a pass, and rows whose sums have grown weigh more in their block.
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
        caches = self.cached_lse and not self.rows
        lse = inputs.common.get(LSE) if caches else None
        if caches and lse is None:
            inputs.common.park(LSE, row_lse(inputs), inputs.step)
        return Estimate(scores=sampled_mass(inputs, self.rows, lse).log())


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


def sampled_mass(inputs: Inputs, rows: int, lse: Tensor | None = None) -> Tensor:
    """Mean attention of query blocks to key blocks, from exact scores.

    Args:
        inputs: Of equal blocks.
        rows: Query rows drawn in each block, with repetition where a block is short; 0 for all.
        lse: Log-sum-exp of every row's scores, ``(batch, heads, seq)``, of another step; None
            takes that of now.

    Returns:
        Float32 ``(batch, heads, M, N)``; rows sum to one under their own log-sum-exp.
    """
    blocks = inputs.blocks
    at, weight = _sampled_rows(inputs, rows)  # (M, rows)
    tokens = blocks.grid.tokens
    missing = -tokens % blocks.kv_block
    q, k, _ = inputs.qkv
    key = k.float().mT
    made = []
    for part, share in zip(*_chunks(at, weight, inputs), strict=True):
        scores = only_finite(q[:, :, part.flatten()]).float() @ key * inputs.scale
        if lse is None:
            shares = scores.softmax(dim=-1)
        else:
            shares = (scores - lse[:, :, part.flatten(), None]).exp()
        mass = torch.nn.functional.pad(shares, (0, missing))
        mass = mass.unflatten(-1, (-1, blocks.kv_block)).sum(dim=-1).unflatten(2, part.shape)
        made.append((mass * share[..., None]).sum(dim=3))
    return torch.cat(made, dim=2)


def row_lse(inputs: Inputs) -> Tensor:
    """Log-sum-exp of every row's scores, float32 ``(batch, heads, seq)``."""
    q, k, _ = inputs.qkv
    key = k.float().mT
    step = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * q.shape[2]))
    parts = (only_finite(part).float() @ key * inputs.scale for part in q.split(step, dim=2))
    return torch.cat([part.logsumexp(dim=-1) for part in parts], dim=2)


def _sampled_rows(inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """Which query rows stand for each block, and their weights, ``(M, rows)``."""
    blocks = inputs.blocks
    start = torch.arange(blocks.number) * blocks.block
    sizes = (blocks.grid.tokens - start).clamp(max=blocks.block)
    if rows == 0:
        at = start[:, None] + torch.arange(blocks.block)
        inside = at < blocks.grid.tokens
        at, weight = at.clamp(max=blocks.grid.tokens - 1), inside / sizes[:, None]
    else:
        generator = torch.Generator().manual_seed(inputs.layer * 100_003 + inputs.step)
        drawn = torch.rand(blocks.number, rows, generator=generator)
        at = start[:, None] + (drawn * sizes[:, None]).long()
        weight = torch.full((blocks.number, rows), 1 / rows)
    return at.to(blocks.device), weight.float().to(blocks.device)


def _chunks(at: Tensor, weight: Tensor, inputs: Inputs) -> tuple[tuple[Tensor, ...], ...]:
    batch, heads, tokens, _ = inputs.qkv[0].shape
    step = max(1, AT_ONCE // (batch * heads * tokens * at.shape[1]))
    return at.split(step), weight.split(step)
