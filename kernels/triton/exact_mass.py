"""Exact shares of blocks: attention without values, whose rows leave a number for each key block.

The first kernel walks over all keys, or over those of a list, with a tile of queries, writes the
log-sum of each row over each key block, or its highest score, and knows the row's own log-sum-exp
at the end. The second, light one divides and takes the mean, or the largest, over the rows of a
query block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.triton.primitives import LN2, LOG2E, load_rows

SCRATCH = 2**29  # bytes of log-sums that may exist at a time


@triton.jit
def _take(
    q, m, l, k_ptr, to, block, kv_len, k_s, k_d, row_valid, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, KV: tl.constexpr, MASK: tl.constexpr,
    PEAK: tl.constexpr,
):  # fmt: skip
    """Write what the rows have in a block of keys, and take it into their maxima and sums."""
    lane = tl.arange(0, BN)
    key = block * KV + lane
    valid = (lane < KV) & (key < kv_len)
    if MASK:
        k = load_rows(k_ptr, key, valid, k_s, k_d, D, BD)
    else:
        k = load_rows(k_ptr, key, lane >= 0, k_s, k_d, D, BD)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASK:
        s = tl.where(valid[None, :], s, float("-inf"))
    top = tl.max(s, 1)
    own = tl.sum(tl.exp2(s - top[:, None]), 1)
    tl.store(to, top if PEAK else top + tl.log2(own), mask=row_valid)
    m_new = tl.maximum(m, top)
    return m_new, l * tl.exp2(m - m_new) + own * tl.exp2(top - m_new)


@triton.jit(do_not_specialize=["first"])
def _log_sums(
    q_ptr, k_ptr, count_ptr, index_ptr, sums_ptr, lse_ptr, q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d,
    heads, first, rows, height, kv_len, width, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KV: tl.constexpr,
    PEAK: tl.constexpr, LISTED: tl.constexpr, STORE_LSE: tl.constexpr,
):  # fmt: skip
    """A tile of rows against blocks of keys; ``(heads, width, rows)`` is written.

    A tile lies in a run of ``height`` rows: a query block, whose list it reads, or all.
    """
    head = (first + tl.program_id(1)).to(tl.int64)
    k_ptr += head // heads * k_b + head % heads * k_h
    tiles = tl.cdiv(height, BM)
    run, lane = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    row = run * height + lane
    row_valid = (lane < height) & (row < rows)
    q = load_rows(q_ptr + head // heads * q_b + head % heads * q_h, row, row_valid, q_s, q_d, D, BD)
    to = sums_ptr + tl.program_id(1).to(tl.int64) * width * rows + row
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    if LISTED:
        at = head * tl.cdiv(rows, height) + run
        for place in tl.range(0, tl.load(count_ptr + at)):
            block = tl.load(index_ptr + at * width + place)
            m, l = _take(
                q, m, l, k_ptr, to + tl.cast(place, tl.int64) * rows, block, kv_len, k_s, k_d,
                row_valid, scale_log2, D, BD, BN, KV, True, PEAK,
            )  # fmt: skip
    else:
        whole = kv_len // KV
        for block in tl.range(0, whole):
            m, l = _take(
                q, m, l, k_ptr, to + tl.cast(block, tl.int64) * rows, block, kv_len, k_s, k_d,
                row_valid, scale_log2, D, BD, BN, KV, BN != KV, PEAK,
            )  # fmt: skip
        if whole < width:
            m, l = _take(
                q, m, l, k_ptr, to + tl.cast(whole, tl.int64) * rows, whole, kv_len, k_s, k_d,
                row_valid, scale_log2, D, BD, BN, KV, True, PEAK,
            )  # fmt: skip
    if STORE_LSE:
        tl.store(lse_ptr + head * rows + row, (m + tl.log2(l)) * LN2, mask=row_valid)


@triton.jit(do_not_specialize=["first"])
def _combine(
    sums_ptr, lse_ptr, count_ptr, out_ptr, first, rows, q_blocks, width,
    HEIGHT: tl.constexpr, TALL: tl.constexpr, BJ: tl.constexpr, PEAK: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """Mean, or largest, over the rows of a query block of what each gives to BJ blocks of keys."""
    i, here = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, TALL)
    row = i * HEIGHT + lane
    mine = (lane < HEIGHT) & (row < rows)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    written = j < width
    if LISTED:
        written &= j < tl.load(count_ptr + (first + here) * q_blocks + i)
    lse = tl.load(lse_ptr + (first + here) * rows + row, mask=mine, other=0.0) / LN2
    at = (here * width + j)[:, None] * rows + row[None, :]
    s = tl.load(sums_ptr + at, mask=written[:, None] & mine[None, :], other=float("-inf"))
    share = tl.exp2(s - lse[None, :])
    if PEAK:
        found = tl.max(share, 1)
    else:
        found = tl.sum(share, 1) / tl.minimum(rows - i * HEIGHT, HEIGHT).to(tl.float32)
    tl.store(out_ptr + ((first + here) * q_blocks + i) * width + j, found, mask=j < width)


def launch(
    q: Tensor, k: Tensor, *, q_block: int, kv_block: int, scale: float, peak: bool = False,
    lists: tuple[Tensor, Tensor] | None = None, lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the kernels for as many heads at a time as the scratch takes.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        q_block: Rows in a query block.
        kv_block: Keys in a key block.
        scale: Score scale.
        peak: The largest share of a pair, not the mean share of a block.
        lists: How many key blocks each query block sees, and which; all when None.
        lse: By which each row is divided; its own when None.

    Returns:
        Shares, float32 ``(batch, heads, M, N)``, or of the blocks of lists, in their places; and
        the log-sum-exp of each row.
    """
    batch, heads, rows, head_dim = q.shape
    kv_len = k.shape[2]
    if max(q_block, kv_block) > 256:
        raise BadInputError(
            f"exact mass takes blocks of at most 256 on a GPU, got {max(q_block, kv_block)}"
        )
    q_blocks = triton.cdiv(rows, q_block)
    width = triton.cdiv(kv_len, kv_block) if lists is None else lists[1].shape[-1]
    height = rows if lists is None else q_block
    out = torch.empty((batch, heads, q_blocks, width), dtype=torch.float32, device=q.device)
    given = lse is not None
    lse = lse.contiguous() if given else q.new_empty((batch, heads, rows), dtype=torch.float32)
    count, index = (None, None) if lists is None else (x.contiguous() for x in lists)
    together = max(1, min(batch * heads, SCRATCH // (4 * rows * width)))
    sums = torch.empty((together, width, rows), dtype=torch.float32, device=q.device)
    wide = max(16, triton.next_power_of_2(head_dim))
    small = wide > 128 or q.element_size() == 4
    queries = min(64 if small else 128, max(16, triton.next_power_of_2(height)))
    tall = max(16, triton.next_power_of_2(q_block))
    across = max(1, 4096 // tall)
    what = {"PEAK": peak, "LISTED": lists is not None}
    for first in range(0, batch * heads, together):
        number = min(together, batch * heads - first)
        tiles = triton.cdiv(rows, height) * triton.cdiv(height, queries)
        _log_sums[(tiles, number)](
            q, k, count, index, sums, lse, *q.stride(), *k.stride(),
            heads, first, rows, height, kv_len, width, scale * LOG2E,
            D=head_dim, BD=wide, BM=queries, BN=max(16, triton.next_power_of_2(kv_block)),
            KV=kv_block, STORE_LSE=not given, **what,
            num_warps=8 if queries == 128 else 4, num_stages=1 if small else 2,
        )  # fmt: skip
        _combine[(q_blocks, triton.cdiv(width, across), number)](
            sums, lse, count, out, first, rows, q_blocks, width,
            HEIGHT=q_block, TALL=tall, BJ=across, **what, num_warps=4,
        )  # fmt: skip
    return out, lse
