"""Row gather and scatter by an order, and a stable counting sort of labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton.primitives import shared_strides


@triton.jit
def _move_rows(
    x_ptr, y_ptr, order_ptr,
    x_b, x_h, x_s, x_d, y_b, y_h, y_s, y_d, order_b, order_h,
    heads, seq,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    """``y[p] = x[order[p]]``, or ``y[order[p]] = x[p]``, of ``ROWS`` rows of one (batch, head)."""
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
def _gather_alike(
    x0_ptr, x1_ptr, x2_ptr, y0_ptr, y1_ptr, y2_ptr, order_ptr,
    x0_b, x0_h, x0_s, x0_d, x1_b, x1_h, x1_s, x1_d, x2_b, x2_h, x2_s, x2_d, y_b, y_h, y_s,
    order_b, order_h, heads, seq,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``y[p] = x[order[p]]`` of two or three tensors of one shape, by the third program index."""
    which = tl.program_id(2)
    if which == 0:
        _move_rows(
            x0_ptr, y0_ptr, order_ptr, x0_b, x0_h, x0_s, x0_d, y_b, y_h, y_s, 1, order_b, order_h,
            heads, seq, D, BD, ROWS, False,
        )  # fmt: skip
    elif which == 1:
        _move_rows(
            x1_ptr, y1_ptr, order_ptr, x1_b, x1_h, x1_s, x1_d, y_b, y_h, y_s, 1, order_b, order_h,
            heads, seq, D, BD, ROWS, False,
        )  # fmt: skip
    else:
        _move_rows(
            x2_ptr, y2_ptr, order_ptr, x2_b, x2_h, x2_s, x2_d, y_b, y_h, y_s, 1, order_b, order_h,
            heads, seq, D, BD, ROWS, False,
        )  # fmt: skip


@triton.jit
def _rank(label_ptr, rank_ptr, count_ptr, seq, clusters, CHUNK: tl.constexpr):
    """How many equal labels stand before each token in its chunk, and how many there are.

    Every lane against every other; the last of each label writes ``count[head, chunk, label]``.
    """
    chunk = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    lane, other_lane = tl.arange(0, CHUNK), tl.arange(0, CHUNK)
    position, other_at = chunk * CHUNK + lane, chunk * CHUNK + other_lane
    label = tl.load(label_ptr + head * seq + position, mask=position < seq, other=-1)
    other = tl.load(label_ptr + head * seq + other_at, mask=other_at < seq, other=-2)
    equal = label[:, None] == other[None, :]
    rank = tl.sum((equal & (other_lane[None, :] < lane[:, None])).to(tl.int32), 1)
    number = tl.sum(equal.to(tl.int32), 1)
    valid = position < seq
    tl.store(rank_ptr + head * seq + position, rank, mask=valid)
    at = count_ptr + (head * tl.num_programs(0) + chunk) * clusters + label
    tl.store(at, number, mask=valid & (rank == number - 1))


@triton.jit
def _run(count_ptr, total_ptr, chunks, clusters, BT: tl.constexpr, BC: tl.constexpr):
    """Replace counts by what earlier chunks hold of each label; the sum goes to ``total``."""
    head = tl.program_id(1).to(tl.int64)
    label = tl.program_id(0) * BC + tl.arange(0, BC)
    before = tl.zeros([BC], tl.int32)
    for start in tl.range(0, chunks, BT):
        chunk = start + tl.arange(0, BT)
        at = count_ptr + (head * chunks + chunk)[:, None] * clusters + label[None, :]
        mask = (chunk < chunks)[:, None] & (label < clusters)[None, :]
        count = tl.load(at, mask=mask, other=0)
        tl.store(at, before[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        before += tl.sum(count, 0)
    tl.store(total_ptr + head * clusters + label, before, mask=label < clusters)


@triton.jit
def _place(
    label_ptr, rank_ptr, offset_ptr, before_ptr, order_ptr, seq, clusters, chunks,
    CHUNK: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Write each token behind the equal labels before it."""
    head = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BT + tl.arange(0, BT)
    valid = position < seq
    label = tl.load(label_ptr + head * seq + position, mask=valid, other=0)
    to = tl.load(rank_ptr + head * seq + position, mask=valid, other=0).to(tl.int32)
    to += tl.load(offset_ptr + head * (clusters + 1) + label, mask=valid, other=0)
    at = before_ptr + (head * chunks + position // CHUNK) * clusters + label
    to += tl.load(at, mask=valid, other=0)
    tl.store(order_ptr + head * seq + to, position, mask=valid)


def gather(x: Tensor, order: Tensor) -> Tensor:
    """``y[b, h, p] = x[b, h, order[b, h, p]]``, contiguous."""
    return _move(x, torch.empty(x.shape, dtype=x.dtype, device=x.device), order, scatter=False)


def gather_alike(xs: Sequence[Tensor], order: Tensor) -> tuple[Tensor, ...]:
    """The same of two or three tensors of one shape and dtype, in one launch."""
    batch, heads, seq, dim = xs[0].shape
    order = order.contiguous()
    ys = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in xs)
    x, y = ((*each, each[-1])[:3] for each in (xs, ys))
    wide, rows = _tile(dim)
    _gather_alike[(triton.cdiv(seq, rows), batch * heads, len(xs))](
        *x, *y, order, *x[0].stride(), *x[1].stride(), *x[2].stride(), *y[0].stride()[:3],
        *shared_strides(order), heads, seq, D=dim, BD=wide, ROWS=rows, num_warps=4,
    )  # fmt: skip
    return ys


def scatter(y: Tensor, order: Tensor, into: Tensor) -> Tensor:
    """``into[b, h, order[b, h, p]] = y[b, h, p]``."""
    return _move(y, into, order, scatter=True)


def _move(x: Tensor, y: Tensor, order: Tensor, *, scatter: bool) -> Tensor:
    batch, heads, seq, dim = x.shape
    order = order.contiguous()
    wide, rows = _tile(dim)
    _move_rows[(triton.cdiv(seq, rows), batch * heads)](
        x, y, order, *x.stride(), *y.stride(), *shared_strides(order),
        heads, seq, D=dim, BD=wide, ROWS=rows, SCATTER=scatter, num_warps=4,
    )  # fmt: skip
    return y


def _tile(dim: int) -> tuple[int, int]:
    """Numbers of a row and rows that a program takes."""
    wide = triton.next_power_of_2(dim)
    return wide, max(16, min(128, 8192 // wide))


def counting_sort(labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Stable order and offsets; see ``order_by_label``."""
    batch, heads, seq = labels.shape
    labels = labels.to(torch.int32).contiguous()
    device, every = labels.device, batch * heads
    # a program compares all its tokens with one another, but each chunk has a count of each label
    chunk = 64
    chunks = triton.cdiv(seq, chunk)
    counts = torch.zeros((every, chunks, clusters), dtype=torch.int32, device=device)
    totals = torch.empty((batch, heads, clusters), dtype=torch.int32, device=device)
    rank = torch.empty(labels.shape, dtype=torch.uint8, device=device)
    _rank[(chunks, every)](labels, rank, counts, seq, clusters, CHUNK=chunk, num_warps=1)
    _run[(triton.cdiv(clusters, 32), every)](counts, totals, chunks, clusters, BT=64, BC=32)
    ends = totals.cumsum(dim=-1, dtype=torch.int32)
    offsets = torch.cat([torch.zeros_like(ends[..., :1]), ends], dim=-1)
    order = torch.empty_like(labels)
    _place[(triton.cdiv(seq, 512), every)](
        labels, rank, offsets, counts, order, seq, clusters, chunks, CHUNK=chunk, BT=512
    )
    return order, offsets
