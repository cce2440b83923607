"""Row gather and scatter by an order, and a stable counting sort of labels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 256  # tokens that one program ranks


@triton.jit
def _move_rows(
    x_ptr, y_ptr, order_ptr,
    x_b, x_h, x_s, x_d, y_b, y_h, y_s, y_d, order_b, order_h,
    heads, seq,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    """``y[p] = x[order[p]]``, or ``y[order[p]] = x[p]``."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = position < seq
    token = tl.load(order_ptr + b * order_b + h * order_h + position, mask=valid, other=0)
    if SCATTER:
        source, target = position, token
    else:
        source, target = token, position
    dims = tl.arange(0, BD)
    mask = valid[:, None] & (dims < D)[None, :]
    x_at = b * x_b + h * x_h + source.to(tl.int64)[:, None] * x_s + dims[None, :] * x_d
    y_at = b * y_b + h * y_h + target.to(tl.int64)[:, None] * y_s + dims[None, :] * y_d
    tl.store(y_ptr + y_at, tl.load(x_ptr + x_at, mask=mask, other=0.0), mask=mask)


@triton.jit
def _count(label_ptr, count_ptr, seq, CLUSTERS: tl.constexpr, CHUNK: tl.constexpr):
    """How often each label occurs in a chunk: ``count[head, chunk, label]``."""
    chunk = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    label = tl.load(label_ptr + head * seq + position, mask=position < seq, other=CLUSTERS)
    found = tl.histogram(label, triton.next_power_of_2(CLUSTERS + 1))
    at = tl.arange(0, triton.next_power_of_2(CLUSTERS + 1))
    to = count_ptr + (head * tl.num_programs(0) + chunk) * CLUSTERS
    tl.store(to + at, found, mask=at < CLUSTERS)


@triton.jit
def _place(
    label_ptr, start_ptr, before_ptr, order_ptr, seq, CLUSTERS: tl.constexpr, CHUNK: tl.constexpr
):
    """Write each token of a chunk behind the equal labels before it."""
    chunk = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    position = chunk * CHUNK + lane
    valid = position < seq
    label = tl.load(label_ptr + head * seq + position, mask=valid, other=-1)
    # every lane against every other: its own labels again, along the other axis
    other_lane = tl.arange(0, CHUNK)
    other_at = chunk * CHUNK + other_lane
    other = tl.load(label_ptr + head * seq + other_at, mask=other_at < seq, other=-2)
    earlier = (label[:, None] == other[None, :]) & (other_lane[None, :] < lane[:, None])
    rank = tl.sum(earlier.to(tl.int32), 1)
    start = tl.load(start_ptr + head * (CLUSTERS + 1) + label, mask=valid, other=0)
    at = before_ptr + (head * tl.num_programs(0) + chunk) * CLUSTERS + label
    before = tl.load(at, mask=valid, other=0)
    tl.store(order_ptr + head * seq + start + before + rank, position, mask=valid)


def gather(x: Tensor, order: Tensor) -> Tensor:
    """``y[b, h, p] = x[b, h, order[b, h, p]]``, contiguous."""
    return _move(x, torch.empty(x.shape, dtype=x.dtype, device=x.device), order, scatter=False)


def scatter(y: Tensor, order: Tensor, into: Tensor) -> Tensor:
    """``into[b, h, order[b, h, p]] = y[b, h, p]``."""
    return _move(y, into, order, scatter=True)


def _move(x: Tensor, y: Tensor, order: Tensor, *, scatter: bool) -> Tensor:
    batch, heads, seq, dim = x.shape
    order = order.contiguous()
    wide = triton.next_power_of_2(dim)
    rows = max(16, min(128, 8192 // wide))
    _move_rows[(triton.cdiv(seq, rows), batch * heads)](
        x, y, order, *x.stride(), *y.stride(),
        *(0 if order.shape[i] == 1 else order.stride(i) for i in (0, 1)),
        heads, seq, D=dim, BD=wide, ROWS=rows, SCATTER=scatter, num_warps=4,
    )  # fmt: skip
    return y


def counting_sort(labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Stable order and offsets; see ``order_by_label``."""
    batch, heads, seq = labels.shape
    labels = labels.to(torch.int32).contiguous()
    chunks = triton.cdiv(seq, CHUNK)
    grid = (chunks, batch * heads)
    shape = (batch, heads, chunks, clusters)
    counts = torch.empty(shape, dtype=torch.int32, device=labels.device)
    _count[grid](labels, counts, seq, CLUSTERS=clusters, CHUNK=CHUNK)
    running = counts.cumsum(dim=2, dtype=torch.int32)
    ends = running[:, :, -1].cumsum(dim=-1, dtype=torch.int32)
    offsets = torch.cat([torch.zeros_like(ends[..., :1]), ends], dim=-1)
    order = torch.empty_like(labels)
    before = running.sub_(counts)
    _place[grid](labels, offsets, before, order, seq, CLUSTERS=clusters, CHUNK=CHUNK, num_warps=8)
    return order, offsets
