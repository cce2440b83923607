"""Blocks whose tokens are too unlike for their mean to speak for them: SpargeAttn's judge."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsparse.kernels.planning.pooling import only_finite, pool_blocks
from vidsparse.policies.estimator import Estimate, Inputs, Measure

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


def similarity(x: Tensor, block: int) -> Tensor:
    """Mean cosine of all pairs of tokens of each equal block, ``(batch, heads, N)``.

    The diagonal counts: of n tokens at right angles it is 1/n. It is the squared length of the mean
    of the tokens at length one.

    Args:
        x: ``(batch, heads, seq, head_dim)``.
        block: Tokens in a block.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    unit = x / length.clamp(min=1e-6).to(x.dtype)
    return pool_blocks(unit, block).square().sum(dim=-1)


def unlike(inputs: Inputs, least: float) -> tuple[Tensor, Tensor]:
    """Blocks of queries and of keys that are no more alike than this, boolean ``(B, H, M|N)``."""
    q, k, _ = inputs.qkv
    blocks = inputs.blocks
    queries = similarity(only_finite(q), blocks.block) <= least
    return queries, similarity(k, blocks.kv_block) <= least


def unlike_pairs(inputs: Inputs, least: float) -> Tensor:
    """Pairs of blocks of which either is unlike, boolean ``(batch, heads, M, N)``."""
    queries, keys = unlike(inputs, least)
    return queries[..., None] | keys.unsqueeze(-2)


def without_unlike(estimate: Estimate, inputs: Inputs, least: float, measure: Measure) -> Estimate:
    """The estimate of the other key blocks: the mass of unlike ones, kept anyway, is not in it."""
    if measure is not Measure.LOG_MASS:
        return estimate
    mass, away = estimate.log_mass, unlike(inputs, least)[1].unsqueeze(-2)
    return dataclasses.replace(
        estimate,
        scores=estimate.scores.masked_fill(away, -math.inf),
        log_mass=None if mass is None else mass.masked_fill(away, -math.inf),
    )


def beside_density(policy: Policy) -> list[str]:
    """What to say where a density is not all that is computed."""
    if policy.min_similarity is None or policy.any_density is None:
        return []
    name = "mean_density" if policy.density is None else "density"
    return [
        f"blocks of unlike tokens (min_similarity={policy.min_similarity:g}) are computed beside "
        f"{name}={policy.any_density:g}: how much is computed in all depends on the data; a lower "
        "min_similarity finds fewer of them"
    ]


def why_no_judge(policy: Policy) -> str | None:
    """Why blocks cannot be judged, in one sentence; None if they can."""
    if policy.order.makes_clusters:
        return "min_similarity judges equal blocks, and the order makes clusters"
    if policy.alternatives is not None:
        return "min_similarity judges the blocks of one order, and heads choose among several"
    estimator = policy.estimator
    if not estimator.needs_data or estimator.observes or estimator.of_pruned:
        return "min_similarity judges means of queries and keys, which this estimator does without"
    if policy.selector.per_token:
        return "min_similarity keeps whole blocks, and this selector picks blocks for each token"
    return None
