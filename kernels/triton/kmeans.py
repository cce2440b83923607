"""One k-means step: assign by tensor-core products, sum by products with one-hot labels.

Sums by atomics would be a third of a billion of them at video sizes; a product of one-hot labels
with the tokens reads the same bytes, repeats exactly, and tensor cores do it in passing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _assign(
    x_ptr, c_ptr, bias_ptr, label_ptr, x_b, x_h, x_s, x_d, heads, seq, clusters,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The nearest centroid of each token: largest ``x . c - |c|^2 / 2``."""
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    head = bh.to(tl.int64)
    dims = tl.arange(0, BD)
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    valid = token < seq
    x_at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
    x = tl.load(x_ptr + x_at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
    best = tl.full([BT], float("-inf"), tl.float32)
    label = tl.zeros([BT], tl.int32)
    for start in tl.range(0, clusters, BC):
        cluster = start + tl.arange(0, BC)
        exists = cluster < clusters
        c_at = (head * clusters + cluster)[:, None] * D + dims[None, :]
        c = tl.load(c_ptr + c_at, mask=exists[:, None] & (dims < D)[None, :], other=0.0)
        bias = tl.load(bias_ptr + head * clusters + cluster, mask=exists, other=float("inf"))
        score = tl.dot(x, tl.trans(c), input_precision="ieee") - bias[None, :]
        top, at = tl.max(score, 1, return_indices=True, return_indices_tie_break_left=True)
        label = tl.where(top > best, start + at, label)
        best = tl.maximum(best, top)
    tl.store(label_ptr + head * seq + token, label, mask=valid)


@triton.jit
def _sum(
    x_ptr, label_ptr, sum_ptr, size_ptr, x_b, x_h, x_s, x_d, heads, seq, clusters, span,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum of the tokens of BC clusters over one span of the sequence."""
    bh = tl.program_id(1)
    x_ptr += (bh // heads).to(tl.int64) * x_b + (bh % heads).to(tl.int64) * x_h
    head = bh.to(tl.int64)
    dims = tl.arange(0, BD)
    cluster = tl.program_id(0) * BC + tl.arange(0, BC)
    begin = tl.program_id(2) * span
    acc = tl.zeros([BC, BD], tl.float32)
    size = tl.zeros([BC], tl.int32)
    for start in tl.range(begin, tl.minimum(begin + span, seq), BT):
        token = start + tl.arange(0, BT)
        valid = (token < seq) & (token < begin + span)
        label = tl.load(label_ptr + head * seq + token, mask=valid, other=-1)
        x_at = token.to(tl.int64)[:, None] * x_s + dims[None, :].to(tl.int64) * x_d
        x = tl.load(x_ptr + x_at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
        member = cluster[:, None] == label[None, :]
        acc += tl.dot(member.to(x.dtype), x, input_precision="ieee")
        size += tl.sum(member.to(tl.int32), 1)
    to = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + head) * clusters + cluster
    exists = cluster < clusters
    tl.store(sum_ptr + to[:, None] * D + dims[None, :], acc,
             mask=exists[:, None] & (dims < D)[None, :])  # fmt: skip
    tl.store(size_ptr + to, size, mask=exists)


def step(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels under the centroids, and the sum and number of each cluster's tokens."""
    batch, heads, seq, head_dim = x.shape
    clusters = centroids.shape[2]
    device = x.device
    rounded = centroids.to(x.dtype).contiguous()
    bias = rounded.float().square().sum(dim=-1) / 2
    labels = torch.empty((batch, heads, seq), dtype=torch.int32, device=device)
    wide = max(16, triton.next_power_of_2(head_dim))
    tokens = 128 if wide <= 128 and x.dtype != torch.float32 else 64
    some = min(64, max(16, triton.next_power_of_2(clusters)))
    _assign[(triton.cdiv(seq, tokens), batch * heads)](
        x, rounded, bias, labels, *x.stride(), heads, seq, clusters,
        D=head_dim, BD=wide, BT=tokens, BC=some, num_warps=8 if tokens == 128 else 4, num_stages=3,
    )  # fmt: skip
    some = min(128 if wide <= 128 else 64, max(16, triton.next_power_of_2(clusters)))
    tiles = triton.cdiv(clusters, some)
    spans = max(1, min(triton.cdiv(seq, 1024), 1024 // (tiles * batch * heads)))
    span = triton.cdiv(triton.cdiv(seq, spans), 64) * 64
    spans = triton.cdiv(seq, span)
    sums = torch.empty(
        (spans, batch, heads, clusters, head_dim), dtype=torch.float32, device=device
    )
    sizes = torch.empty((spans, batch, heads, clusters), dtype=torch.int32, device=device)
    _sum[(tiles, batch * heads, spans)](
        x, labels, sums, sizes, *x.stride(), heads, seq, clusters, span,
        D=head_dim, BD=wide, BT=64, BC=some, num_warps=8 if some == 128 else 4, num_stages=3,
    )  # fmt: skip
    return labels, sums.sum(dim=0), sizes.sum(dim=0, dtype=torch.int32)
