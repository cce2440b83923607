"""Clusters moved to sizes that kernels fill (ours): rows in tiles and keys in chunks, full or not.

A cluster with few tokens more than a multiple gives as many to others, those whose scores with
their own centroid and with the nearest of a taker differ least; a taker has many more than a
multiple, and takes what makes it one. What that fills and moves: benchmarks/filled_tiles.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.planning.permute import order_by_label

ROUNDS = 3
FEW = 3, 8  # of a multiple: a cluster with no more tokens than that beyond one gives them


class Some(NamedTuple):
    """Which tokens are asked for, and which clusters they may have.

    Attributes:
        clusters: bool ``(batch, heads, clusters)``.
        tokens: bool ``(batch, heads, seq)``; what others are given nobody reads.
        order: Tokens with those of a cluster side by side, int32 ``(batch, heads, seq)``.
    """

    clusters: Tensor
    tokens: Tensor
    order: Tensor


Nearest = Callable[[Some], tuple[Tensor, Tensor]]
"""The nearest of some clusters for some tokens, and its score."""


def to_multiples(
    labels: Tensor, scores: Tensor, clusters: int, of: int, nearest: Nearest, *, impl: str = "auto"
) -> Tensor:
    """Labels under which more clusters are of a multiple ``of`` so many tokens.

    A cluster of few tokens in all may be left without any.

    Args:
        labels: Cluster of each token, int32 ``(batch, heads, seq)``.
        scores: Of each token with its cluster, float32 ``(batch, heads, seq)``: the more, the
            nearer.
        clusters: How many there are.
        of: Tokens.
        nearest: Finds where tokens may go; scores that are no number keep them.
        impl: "triton", "reference" (plain torch), or "auto": Triton on CUDA.

    Returns:
        int32 ``(batch, heads, seq)``.
    """
    if use_triton(impl, labels):
        from vidsparse.kernels.triton.multiples import leaving, move
    else:
        leaving, move = _leaving, _move
    few = FEW[0] * of // FEW[1]
    for _ in range(ROUNDS):
        order, offsets = order_by_label(labels, clusters, impl=impl)
        more = offsets.diff(dim=-1) % of
        spare = torch.where(more > few, of - more, 0)
        surplus = torch.where(more <= few, more, 0)
        asked = surplus.gather(-1, labels.long()) > 0
        target, best = nearest(Some(spare > 0, asked, order))
        goes = leaving(scores, best, target, order, offsets, surplus)
        order, offsets = order_by_label(goes, clusters + 1, impl=impl)
        labels, scores = move(labels, scores, target, best, order, offsets, goes, spare)
    return labels


def _leaving(
    scores: Tensor, best: Tensor, target: Tensor, order: Tensor, offsets: Tensor, surplus: Tensor
) -> Tensor:
    """Where each token wants to go, or the number of clusters: of each cluster its surplus goes.

    Those first who lose least by it, then those who stand first.
    """
    clusters = surplus.shape[-1]
    lost = (scores - best).clamp(min=0)
    lost = torch.where(lost.isfinite(), lost, torch.inf)
    by_label = lost.gather(-1, order.long())
    place = torch.arange(order.shape[-1], device=order.device)
    ends = offsets[..., 1:].contiguous()
    label = torch.searchsorted(ends, place.expand_as(order).contiguous(), right=True)
    # sorted by what is lost within each label: stably by that, then stably by label
    first = by_label.argsort(dim=-1, stable=True)
    first = first.gather(-1, label.gather(-1, first).argsort(dim=-1, stable=True))
    rank = place - offsets[..., :-1].gather(-1, label)  # labels stand where they stood
    goes = (rank < surplus.gather(-1, label)) & by_label.gather(-1, first).isfinite()
    token = order.gather(-1, first).long()
    wanted = torch.where(goes, target.gather(-1, token), clusters)
    return torch.empty_like(target).scatter_(-1, token, wanted.to(target.dtype))


def _move(
    labels: Tensor, scores: Tensor, target: Tensor, best: Tensor, order: Tensor, offsets: Tensor,
    goes: Tensor, spare: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Labels and scores of tokens that went, as many to each cluster as there is room for."""
    place = torch.arange(order.shape[-1], device=order.device)
    wanted = goes.gather(-1, order.long()).long()
    rank = place - offsets[..., :-1].gather(-1, wanted)
    room = torch.nn.functional.pad(spare, (0, 1)).gather(-1, wanted)
    moves = torch.empty_like(goes, dtype=torch.bool).scatter_(-1, order.long(), rank < room)
    return torch.where(moves, target, labels), torch.where(moves, best, scores)
