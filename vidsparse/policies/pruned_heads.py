"""Some heads of a layer under an order that keeps few tokens for all, beside others that do not."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged, in_order
from vidsparse.policies.sampled import Samples


def mixed(inputs: Inputs, arranged: list[Arranged], choice: Tensor) -> Arranged:
    """Every head in the order it chose, its places copying outputs where that order says so.

    Args:
        inputs: In raster order.
        arranged: The call in the order of each candidate.
        choice: The candidate of each head, ``(batch, heads)``.
    """
    shape = *choice.shape, inputs.blocks.grid.tokens
    own = torch.arange(shape[-1], device=choice.device)
    order, copies = own.to(torch.int32).expand(shape), own.expand(shape)
    cleaned = torch.zeros_like(choice, dtype=torch.bool)
    for at, each in enumerate(arranged):
        takes = (choice == at)[..., None]
        if each.q_order is not None:
            order = torch.where(takes, each.q_order.expand(shape), order)
        if each.inputs.copies is not None:
            copies = torch.where(takes, each.inputs.copies.expand(shape), copies)
            cleaned |= takes[..., 0]
    made = in_order(inputs, order)
    q = made.inputs.qkv[0]
    q = torch.where(cleaned[..., None, None], only_finite(q), q)
    return made._replace(inputs=dataclasses.replace(made.inputs, q=q, copies=copies))


def copied_error(arranged: Arranged, samples: Samples) -> Tensor:
    """Squared error of sampled rows where what an order keeps attends for all, ``(batch, heads)``.

    What is kept attends to what is kept and to text; rows of text are exact.

    Args:
        arranged: The call in an order that prunes.
        samples: The rows, and what they are exactly.
    """
    inputs, order = arranged.inputs, arranged.q_order
    (q, k, v), grid = inputs.qkv, inputs.blocks.grid
    assert order is not None
    assert inputs.kept is not None
    shape = *q.shape[:2], q.shape[2]
    place = torch.empty(shape, dtype=torch.int64, device=q.device)
    at = torch.arange(shape[-1], device=q.device)
    place.scatter_(-1, order.expand(shape).long(), at.expand(shape))
    place = place[..., samples.rows]
    if inputs.copies is not None:
        place = inputs.copies.expand(shape).gather(-1, place).clamp(min=0)
    query = q.gather(2, place[..., None].expand(*place.shape, q.shape[-1]))
    is_kept = (at < inputs.kept) | (at >= shape[-1] - grid.suffix)
    scores = ((query @ k.mT).float() * inputs.scale).masked_fill(~is_kept, -torch.inf)
    out = (scores.softmax(dim=-1).to(v.dtype) @ v).float()
    rows = samples.rows
    is_video = (rows >= grid.prefix) & (rows < grid.prefix + grid.video_tokens)
    return ((out - samples.out).square().sum(dim=-1) * is_video).mean(dim=-1)
