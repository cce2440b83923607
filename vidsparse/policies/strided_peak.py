"""The largest share of attention between sampled tokens of two blocks: ProxyAttn's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.exact_mass import largest_shares
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedPeak(Estimator):
    """Log of the largest share that any sampled query of a block gives any sampled key of another.

    ProxyAttn, arXiv 2509.24745: of every ``stride`` tokens the first stands for all, softmax goes
    over the sampled keys. A strong key is not averaged away, as it is by the mean of its block; so
    it costs 1/stride^2 of all scores of each head, and ``scoring_heads`` make that few heads.

    Attributes:
        stride: Tokens of which one is sampled: 1, 2, 4, 8 or 16.
    """

    stride: int = 4

    measure: ClassVar[Measure] = Measure.LOG_MASS

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4, 8, 16):
            raise BadInputError(f"stride must be 1, 2, 4, 8 or 16, got {self.stride}")

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block by its largest sampled share, ``(batch, heads, M, N)``."""
        blocks, (q, k, _) = inputs.blocks, inputs.qkv
        query, key = (x[:, :, :: self.stride] for x in (only_finite(q), k))
        shares = largest_shares(
            query, key, q_block=blocks.block // self.stride,
            kv_block=blocks.kv_block // self.stride, scale=inputs.scale,
        )  # fmt: skip
        return Estimate(scores=shares.log())
