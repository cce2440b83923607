"""Which tokens leave their cluster to make its size a multiple, and which find room elsewhere."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 256  # tokens of a cluster that are read together: most clusters have no more


@triton.jit
def _lost(score_ptr, best_ptr, order_ptr, place, end):
    """What tokens lose by leaving, as integers in the same order; what is no number, infinity."""
    inside = place < end
    token = tl.load(order_ptr + place, mask=inside, other=0)
    score = tl.load(score_ptr + token, mask=inside, other=0.0)
    best = tl.load(best_ptr + token, mask=inside, other=float("-inf"))
    lost = score - best
    lost = tl.where(lost < float("inf"), tl.maximum(lost, 0.0), float("inf"))
    return token, inside, lost.to(tl.int32, bitcast=True)


@triton.jit
def _leaving(
    score_ptr, best_ptr, target_ptr, order_ptr, offset_ptr, surplus_ptr, goes_ptr, seq, clusters,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Of one cluster: the least ``surplus`` numbers, found bit by bit; equal ones as they stand."""
    cluster = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    score_ptr += head * seq
    best_ptr += head * seq
    order_ptr += head * seq
    start = tl.load(offset_ptr + head * (clusters + 1) + cluster)
    end = tl.load(offset_ptr + head * (clusters + 1) + cluster + 1)
    surplus = tl.load(surplus_ptr + head * clusters + cluster)
    lane = tl.arange(0, CHUNK)
    last = 0  # of the numbers that go
    below = 0  # how many are less
    if surplus > 0:
        _, inside, lost = _lost(score_ptr, best_ptr, order_ptr, start + lane, end)  # mostly all
        for bit in range(31):
            tried = last | (1 << (30 - bit))
            less = tl.sum((inside & (lost < tried)).to(tl.int32), 0)
            for first in range(start + CHUNK, end, CHUNK):
                _, more, other = _lost(score_ptr, best_ptr, order_ptr, first + lane, end)
                less += tl.sum((more & (other < tried)).to(tl.int32), 0)
            last = tl.where(less < surplus, tried, last)
            below = tl.where(less < surplus, less, below)
    equal = surplus - below  # so many of those that are equal to the last
    for first in range(start, end, CHUNK):
        token, inside, lost = _lost(score_ptr, best_ptr, order_ptr, first + lane, end)
        same = (inside & (lost == last)).to(tl.int32)
        goes = (lost < last) | ((lost == last) & (tl.cumsum(same, 0) <= equal))
        goes = goes & (lost < 0x7F800000) & (surplus > 0)
        target = tl.load(target_ptr + head * seq + token, mask=inside, other=0)
        tl.store(goes_ptr + head * seq + token, tl.where(goes, target, clusters), mask=inside)
        equal -= tl.sum(same, 0)


@triton.jit
def _move(
    label_ptr, score_ptr, target_ptr, best_ptr, order_ptr, offset_ptr, goes_ptr, spare_ptr,
    seq, clusters, BT: tl.constexpr,
):  # fmt: skip
    """Tokens by where they want to go: the first find room."""
    head = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = place < seq
    token = tl.load(order_ptr + head * seq + place, mask=inside, other=0)
    at = head * seq + token
    wanted = tl.load(goes_ptr + at, mask=inside, other=clusters)
    wants = inside & (wanted < clusters)
    start = tl.load(offset_ptr + head * (clusters + 2) + wanted, mask=wants, other=0)
    room = tl.load(spare_ptr + head * clusters + wanted, mask=wants, other=0)
    moves = wants & (place - start < room)
    tl.store(label_ptr + at, tl.load(target_ptr + at, mask=moves, other=0), mask=moves)
    tl.store(score_ptr + at, tl.load(best_ptr + at, mask=moves, other=0.0), mask=moves)


def leaving(
    scores: Tensor, best: Tensor, target: Tensor, order: Tensor, offsets: Tensor, surplus: Tensor
) -> Tensor:
    """Where each token wants to go; see the reference."""
    batch, heads, seq = scores.shape
    clusters = surplus.shape[-1]
    goes = torch.empty_like(target)
    _leaving[(clusters, batch * heads)](
        scores, best, target, order, offsets, surplus, goes, seq, clusters, CHUNK=CHUNK,
        num_warps=1,
    )  # fmt: skip
    return goes


def move(
    labels: Tensor, scores: Tensor, target: Tensor, best: Tensor, order: Tensor, offsets: Tensor,
    goes: Tensor, spare: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Labels and scores, written in place, of tokens that found room."""
    batch, heads, seq = labels.shape
    _move[(triton.cdiv(seq, 512), batch * heads)](
        labels, scores, target, best, order, offsets, goes, spare, seq, spare.shape[-1],
        BT=512, num_warps=4,
    )  # fmt: skip
    return labels, scores
