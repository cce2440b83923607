"""One k-means step: assign by tensor-core products, then average each cluster in sorted order.

Averaging by atomics would be a third of a billion of them at video sizes, and a product with
one-hot labels costs as much as assigning. Tokens sorted by label are read once instead, and whoever
clusters wants that order anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.planning.multiples import Some
from vidsparse.kernels.triton.primitives import only_finite


@triton.jit
def _assign(
    x_ptr, c_ptr, bias_ptr, zero_ptr, order_ptr, asked_ptr, label_ptr, score_ptr,
    x_b, x_h, x_s, x_d, heads, seq, clusters,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, FINITE: tl.constexpr,
    SOME: tl.constexpr,
):  # fmt: skip
    """The nearest centroid of each token: largest ``x . c - bias``, half of its square."""
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    head = bh.to(tl.int64)
    dims = tl.arange(0, BD)
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    valid = token < seq
    if SOME:  # tokens of a cluster side by side, so that programs have none to do
        token = tl.load(order_ptr + head * seq + token, mask=valid, other=0)
        asked = tl.load(asked_ptr + head * seq + token, mask=valid, other=0)
        if tl.max(asked, 0) == 0:
            return
    x_at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
    x = tl.load(x_ptr + x_at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
    # the best so far in every column of the tiles; columns are compared once, at the end
    best = tl.full([BT, BC], float("-inf"), tl.float32)
    label = tl.zeros([BT, BC], tl.int32)
    column = tl.arange(0, BC)
    for start in tl.range(0, clusters, BC):
        cluster = start + column
        exists = cluster < clusters
        c_at = (head * clusters + cluster)[:, None] * D + dims[None, :]
        c = tl.load(c_ptr + c_at, mask=exists[:, None] & (dims < D)[None, :], other=0.0)
        bias = tl.load(bias_ptr + head * clusters + cluster, mask=exists, other=float("inf"))
        score = tl.dot(x, tl.trans(c), input_precision="ieee") - bias[None, :]
        better = score > best
        best = tl.where(better, score, best)
        label = tl.where(better, start, label)
    label += column[None, :]
    top = tl.max(best, 1)
    winner = tl.min(tl.where(best == top[:, None], label, 2147483647), 1)
    if FINITE:  # what is no number leaves no score that is one
        sound = tl.abs(top) < float("inf")
        of_zero = tl.load(zero_ptr + head)
        winner = tl.where(sound, winner, of_zero)
        top = tl.where(sound, top, -tl.load(bias_ptr + head * clusters + of_zero))
    tl.store(label_ptr + head * seq + token, winner, mask=valid)
    tl.store(score_ptr + head * seq + token, top, mask=valid)


@triton.jit
def _average(
    x_ptr, order_ptr, offset_ptr, c_ptr, x_b, x_h, x_s, x_d, heads, seq, clusters,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """The mean of one cluster's tokens; without any, its centroid stays."""
    cluster = tl.program_id(0)
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    head = bh.to(tl.int64)
    start = tl.load(offset_ptr + head * (clusters + 1) + cluster)
    end = tl.load(offset_ptr + head * (clusters + 1) + cluster + 1)
    dims = tl.arange(0, BD)
    total = tl.zeros([ROWS, BD], tl.float32)
    for first in tl.range(start, end, ROWS):
        position = first + tl.arange(0, ROWS)
        inside = position < end
        token = tl.load(order_ptr + head * seq + position, mask=inside, other=0)
        x_at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
        mask = inside[:, None] & (dims < D)[None, :]
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
        if FINITE:
            x = only_finite(x)
        total += x
    mean = tl.sum(total, 0) / tl.maximum(end - start, 1).to(tl.float32)
    to = c_ptr + (head * clusters + cluster) * D + dims
    tl.store(to, mean, mask=(dims < D) & (end > start))


def assign(
    x: Tensor, centroids: Tensor, finite: bool, some: Some | None = None
) -> tuple[Tensor, Tensor]:
    """Labels under the centroids and scores; see the reference. Of some alone, others are junk."""
    batch, heads, seq, head_dim = x.shape
    clusters = centroids.shape[2]
    rounded = centroids.to(x.dtype).contiguous()
    bias = rounded.float().square().sum(dim=-1) / 2
    if some is not None:
        bias = bias.masked_fill(~some.clusters, float("inf"))
    of_zero = bias.argmin(dim=-1).int() if finite else None  # the label of a token of zeros
    labels = torch.empty((batch, heads, seq), dtype=torch.int32, device=x.device)
    scores = torch.empty(labels.shape, dtype=torch.float32, device=x.device)
    wide = max(16, triton.next_power_of_2(head_dim))
    tokens = 128 if wide <= 128 and x.dtype != torch.float32 else 64
    _assign[(triton.cdiv(seq, tokens), batch * heads)](
        x, rounded, bias, of_zero, some and some.order, some and some.tokens.byte(),
        labels, scores, *x.stride(), heads, seq, clusters,
        D=head_dim, BD=wide, BT=tokens, BC=32, FINITE=finite, SOME=some is not None,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return labels, scores


def average(x: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, finite: bool) -> Tensor:
    """The mean of each cluster's tokens; see the reference."""
    batch, heads, seq, head_dim = x.shape
    clusters = centroids.shape[2]
    wide = max(16, triton.next_power_of_2(head_dim))
    moved = centroids.float().clone(memory_format=torch.contiguous_format)
    large = seq > 300 * clusters  # then few programs have much to read each
    rows = max(1, (8192 if large else 4096) // wide)
    _average[(clusters, batch * heads)](
        x, order, offsets, moved, *x.stride(), heads, seq, clusters,
        D=head_dim, BD=wide, ROWS=rows, FINITE=finite, num_warps=8 if large else 4, num_stages=3,
    )  # fmt: skip
    return moved
