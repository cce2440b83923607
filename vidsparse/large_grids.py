"""The density of a policy on a grid of so many blocks that its plan would take minutes to make."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.token_masks import is_exact

LARGE = 1500  # blocks in a row: above, no plan of them all is made
ROWS = 96  # of the mask, one drawn from each of so many equal parts, that stand for all


def asked_density(policy: Policy, blocks: Blocks) -> float:
    """What a policy keeps that has a density: that, or what is always kept where it is more."""
    assert policy.density is not None
    grid, number, block = blocks.grid, blocks.number, blocks.block
    before = -(-grid.prefix // block)
    after = number - (grid.prefix + grid.video_tokens) // block if grid.suffix else 0
    text = min(number, before + after)
    short = number * block - grid.tokens  # what the last block lacks
    keep = min(number, text + 1)  # of a row of video, always: its own block, and text
    if policy.selector.equal_rows:
        keep = max(keep, round(policy.density * number))
    keys = keep * block - short * (1.0 if after else keep / number)
    text_rows = (text * block - (short if after else 0)) / grid.tokens
    kept = (1 - text_rows) * keys / grid.tokens + text_rows
    return kept if policy.selector.equal_rows else max(policy.density, kept)


def mask_density(policy: Policy, inputs: Inputs) -> float:
    """That of a mask that needs no data, from some of its rows; its own or the policy's density.

    As in a plan, the best blocks that tie are kept whatever they cost.
    """
    arranged = policy.order.arrange(inputs).inputs
    blocks, rows = arranged.blocks, _some_rows(arranged.blocks)
    some = dataclasses.replace(arranged, blocks=dataclasses.replace(blocks, only=rows))
    estimate, always = policy.estimator.estimate(some), policy.always(some)
    if policy.density is None:
        assert estimate.threshold is not None
        if is_exact(policy) and estimate.exact is not None:
            keep = estimate.exact.to_block_mask()[..., rows, :]
            return _share(keep, policy.always(some, own=False), blocks, rows)
        return _share(estimate.scores >= estimate.threshold, always, blocks, rows)
    best = estimate.scores.masked_fill(always, -torch.inf).amax()
    return max(policy.density, _share(estimate.scores >= best, always, blocks, rows))


def _some_rows(blocks: Blocks) -> Tensor:
    drawn = torch.rand(ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(ROWS) + drawn) * blocks.number / ROWS).long().to(blocks.device)


def _share(keep: Tensor, always: Tensor, blocks: Blocks, rows: Tensor) -> float:
    """Pairs of these rows that are kept over all of them."""
    kept = ((keep | always) * blocks.sizes).sum(dim=-1) @ blocks.sizes[rows]
    return float(kept.mean() / (blocks.sizes[rows].sum() * blocks.grid.tokens))
