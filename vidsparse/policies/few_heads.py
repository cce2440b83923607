"""A few mean heads score blocks for all heads: ProxyAttn, arXiv 2509.24745."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Inputs

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


def group_of_head(heads: int, groups: int) -> list[int]:
    """The group of each head: neighbours, in groups whose sizes differ by one at most.

    Example:
        >>> group_of_head(5, 2)
        [0, 0, 0, 1, 1]
    """
    groups = min(heads, groups)
    return [head * groups // heads for head in range(heads)]


def by_few_heads(inputs: Inputs, groups: int) -> Inputs:
    """The call with so many heads in place of its own, each the mean of a group of them.

    Where devices share the heads of a layer, these are of the heads that are here, and as many
    fewer.

    Args:
        inputs: In an order that all heads share.
        groups: How many, at most as many as there are heads.
    """
    if inputs.share is not None:
        groups = max(1, round(groups * inputs.heads / inputs.share.number))
    group = torch.tensor(group_of_head(inputs.heads, groups))
    member = (group == torch.arange(int(group[-1]) + 1)[:, None]).float()
    weight = member / member.sum(dim=1, keepdim=True)

    def mean(x: Tensor) -> Tensor:
        of_heads = weight.to(x.device, x.dtype, non_blocking=True)
        return torch.einsum("gh,bhsd->bgsd", of_heads, x)

    q, k, v = inputs.qkv
    return dataclasses.replace(
        inputs, q=mean(only_finite(q)), k=mean(k), v=mean(v), heads=len(member), share=None
    )


def for_all_heads(estimate: Estimate, heads: int) -> Estimate:
    """The scores of a few heads, each for the heads of its group."""
    if estimate.scores.shape[1] in (1, heads):
        return estimate
    group = torch.tensor(group_of_head(heads, estimate.scores.shape[1]))
    group = group.to(estimate.scores.device, non_blocking=True)
    mass = estimate.log_mass
    return dataclasses.replace(
        estimate,
        scores=estimate.scores.index_select(1, group),
        log_mass=None if mass is None else mass.index_select(1, group),
    )


def why_not_few_heads(policy: Policy) -> str | None:
    """Why a few heads cannot score for all, in one sentence; None if they can."""
    if not policy.estimator.needs_data or policy.estimator.observes:
        return "scoring_heads are means of queries and keys, and this estimator scores by neither"
    if policy.selector.per_token:
        return "scoring_heads score blocks, and this selector goes by the tokens of each head"
    if not policy.order.static or policy.alternatives is not None:
        return "scoring_heads take blocks that are the same in all heads, and here heads differ"
    return None
