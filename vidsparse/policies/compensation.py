"""Compensation: what is done for the blocks that are skipped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.compensate import rescale
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.pooling import pool_blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.pooled import pooled_mass


class Compensation(StrEnum):
    """What is done for blocks that are skipped.

    Attributes:
        NONE: Nothing; they get no attention.
        RESCALE: The output shrinks to its estimated share of the mass and the mean values of
            skipped blocks are added, where that gains more than it errs (Rectified SpaAttn).
        CENTROID: They attend through their mean key and value, scored with ``+ ln(size)``.
        LEVELS: The next best attend through means of 2, 4 and 8 tokens (PSA).
        RESIDUAL: What they gave each token when the plan was made is added to the output, which is
            scaled by the share of mass it had then (Re-ttention, arXiv 2505.22918). From full
            sparsity on: a plan that changes from step to step lacks something else every time.
    """

    NONE = "none"
    RESCALE = "rescale"
    CENTROID = "centroid"
    LEVELS = "levels"
    RESIDUAL = "residual"


def with_centroids(plan: BlockPlan, inputs: Inputs) -> BlockPlan:
    """A plan whose skipped blocks attend through their means."""
    pooled = Pooled(key=inputs.k_means, value=inputs.v_means, size=inputs.blocks.kv_sizes)
    return dataclasses.replace(plan, pooled=pooled)


def rescaled(out: Tensor, plan: BlockPlan, inputs: Inputs) -> Tensor:
    """The output at its share of the mass, and the mean values of blocks that are worth it."""
    mass = pooled_mass(inputs).softmax(dim=-1).nan_to_num(0.0)
    return rescale(out, plan, mass, inputs.v_means, worth_it(inputs))


def worth_it(inputs: Inputs) -> Tensor:
    """Where the gain of a mean exceeds its error, boolean ``(batch, heads, M, N)``.

        |q_i . k_j| > spread(q_i) |k_j| + |q_i| spread(k_j)

    with the means q_i and k_j of blocks, and spread the mean distance of a block's tokens from it.
    """
    query, key = inputs.q_means, inputs.k_means
    q, k, _ = inputs.qkv
    q_spread = _spread(q, query, inputs.blocks.block)
    k_spread = _spread(k, key, inputs.blocks.block)
    error = q_spread[..., None] * key.norm(dim=-1).unsqueeze(-2)
    error = error + query.norm(dim=-1)[..., None] * k_spread.unsqueeze(-2)
    return (query @ key.mT).abs() > error


def _spread(x: Tensor, means: Tensor, block: int) -> Tensor:
    """Mean distance of each block's tokens from their mean, ``(batch, heads, N)``."""
    near = means.repeat_interleave(block, dim=2)[:, :, : x.shape[2]]
    distance = (x.float() - near).norm(dim=-1, keepdim=True)
    return pool_blocks(distance, block, impl="reference")[..., 0]


class Level(NamedTuple):
    """Blocks that attend through means of a few tokens.

    Attributes:
        tokens: In each mean.
        plan: Which blocks, over the sequence of means.
    """

    tokens: int
    plan: BlockPlan


Attend = Callable[[Tensor, Tensor, Tensor, BlockPlan], tuple[Tensor, Tensor]]


def coarse_plan(keep: Tensor, plan: BlockPlan, tokens: int) -> BlockPlan:
    """The plan over means of ``tokens`` keys that reads these blocks; rows may be empty.

    Args:
        keep: Boolean ``(B|1, H|1, M, N)``.
        plan: Over the keys themselves, of equal blocks.
        tokens: In a mean; divides the block into at least 16 means.
    """
    return BlockPlan.from_mask(
        keep,
        q_len=plan.q_len,
        kv_len=-(-plan.kv_len // tokens),
        q_block=plan.q_block,
        kv_block=plan.kv_block // tokens,
    )


def with_levels(
    inputs: Inputs, plan: BlockPlan, levels: tuple[Level, ...], attend: Attend
) -> Tensor:
    """Attention over exact keys and over means, merged by log-sum-exp.

    A mean of n keys stands for n of them, so its scores count ``ln n`` more. What a short last mean
    stands for is not known to the kernel: its block must be exact.
    """
    q, k, v = inputs.qkv
    parts = [attend(q, k, v, plan)]
    for tokens, coarse in levels:
        key, value = (pool_blocks(x, tokens, dtype=x.dtype) for x in (k, v))
        out, lse = attend(q, key, value, coarse)
        parts.append((out, lse + math.log(tokens)))
    weight = torch.stack([lse for _, lse in parts]).softmax(dim=0)
    outs = torch.stack([out for out, _ in parts])
    return (outs * weight[..., None]).sum(dim=0).to(q.dtype)


RATIO, RESIDUE = "ratio of denominators", "residual"
RISE = 0.04  # of the ratio at every step after it was measured


def refresh_residual(
    inputs: Inputs, sparse: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor]
) -> None:
    """Remember what the sparse output of every token lacks, in host memory.

    One mean for a block of tokens would take a 64th of the memory, and makes a result that is worse
    than without any residual.

    Args:
        inputs: In the plan's order.
        sparse: Output ``(batch, heads, seq, head_dim)`` and log-sum-exp ``(batch, heads, seq)`` of
            the plan.
        dense: Those of dense attention.
    """
    ratio = (sparse[1] - dense[1]).exp()[..., None].to(dense[0].dtype)
    inputs.state.park(RATIO, ratio, inputs.step)
    residue = torch.addcmul(dense[0], sparse[0], ratio, value=-1)
    inputs.state.park(RESIDUE, residue, inputs.step)


def with_residual(out: Tensor, inputs: Inputs) -> Tensor:
    """The output scaled by the remembered ratio, which rises to one, plus the residual."""
    ratio, residue = inputs.state.get(RATIO), inputs.state.get(RESIDUE)
    assert ratio is not None
    assert residue is not None
    age = inputs.state.age(RATIO, inputs.step) or 0
    ratio = (ratio.float() + RISE * age).clamp(max=1.0).to(out.dtype)
    return torch.addcmul(residue, out, ratio)
