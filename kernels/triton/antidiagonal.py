"""Antidiagonal scores: one matrix product over strided tokens, reduced to blocks in registers.

Each row of the reduced map leaves one number for each key block, the log-sum over the block's
columns. That is 1 / (block / stride) of the map, and enough for a second, light kernel to
normalise rows and to average them over query blocks: the product is computed once, not twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
SCRATCH = 2**28  # bytes of row sums that may exist at a time
GROUP = 8  # tiles of rows that share their columns in L2


@triton.jit(do_not_specialize=["first"])
def _row_sums(
    q_ptr, k_ptr, sums_ptr, q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d,
    heads, first, q_len, kv_len, rows, columns, blocks, scale_log2,
    D: tl.constexpr, BK: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr,
    BU: tl.constexpr, BW: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A BU x BW tile of the reduced map, down to base-2 log-sums over every WIDTH columns."""
    head = first + tl.program_id(1)
    q_ptr += (head // heads).to(tl.int64) * q_b + (head % heads).to(tl.int64) * q_h
    k_ptr += (head // heads).to(tl.int64) * k_b + (head % heads).to(tl.int64) * k_h
    tiles_w = tl.cdiv(columns, BW)
    group = tl.program_id(0) // (GROUP * tiles_w)
    height = tl.minimum(tl.cdiv(rows, BU) - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * tiles_w)
    u = (group * GROUP + inside % height) * BU + tl.arange(0, BU)
    w_tile = inside // height
    w = w_tile * BW + tl.arange(0, BW)

    lanes = tl.arange(0, BK)
    q_ptr += (u.to(tl.int64) * STRIDE * q_s)[:, None] + lanes.to(tl.int64)[None, :] * q_d
    k_ptr += (w.to(tl.int64) * STRIDE * k_s)[:, None] + lanes.to(tl.int64)[None, :] * k_d
    t = tl.zeros([BU, BW], tl.float32)
    CHUNKS: tl.constexpr = (D + BK - 1) // BK
    for step in tl.range(0, STRIDE * CHUNKS):
        r = step // CHUNKS
        dim = (step % CHUNKS).to(tl.int64) * BK
        mirrored = STRIDE - 1 - r
        dim_valid = (dim + lanes < D)[None, :]
        q_mask = (u * STRIDE + mirrored < q_len)[:, None] & dim_valid
        k_mask = (w * STRIDE + r < kv_len)[:, None] & dim_valid
        a = tl.load(q_ptr + (mirrored.to(tl.int64) * q_s + dim * q_d), mask=q_mask, other=0.0)
        b = tl.load(k_ptr + (r.to(tl.int64) * k_s + dim * k_d), mask=k_mask, other=0.0)
        t = tl.dot(a, tl.trans(b), t, input_precision="ieee")

    t = tl.where((w < columns)[None, :], t * scale_log2, float("-inf"))
    t = tl.reshape(t, [BU, BW // WIDTH, WIDTH])
    top = tl.max(t, 2)
    top = tl.where(top == float("-inf"), 0.0, top)  # a block after the last, not stored
    sums = top + tl.log2(tl.sum(tl.exp2(t - top[:, :, None]), 2))
    j = w_tile * (BW // WIDTH) + tl.arange(0, BW // WIDTH)
    to = (tl.program_id(1).to(tl.int64) * rows + u)[:, None] * blocks + j[None, :]
    tl.store(sums_ptr + to, sums, mask=(u < rows)[:, None] & (j < blocks)[None, :])


@triton.jit(do_not_specialize=["first"])
def _block_means(
    sums_ptr, out_ptr, first, rows, q_blocks, blocks, WIDTH: tl.constexpr, BJ: tl.constexpr
):
    """One query block: normalise its rows, and average them."""
    i = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    u = i * WIDTH + tl.arange(0, WIDTH)
    row_at = (head * rows + u) * blocks
    m = tl.full([WIDTH], float("-inf"), tl.float32)
    l = tl.zeros([WIDTH], tl.float32)
    for start in tl.range(0, blocks, BJ):
        j = start + tl.arange(0, BJ)
        mask = (u < rows)[:, None] & (j < blocks)[None, :]
        # rows after the last are zeros, to stay finite; they are left out below
        s = tl.load(sums_ptr + row_at[:, None] + j[None, :], mask=mask, other=0.0)
        s = tl.where((j < blocks)[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        l = l * tl.exp2(m - m_new) + tl.sum(tl.exp2(s - m_new[:, None]), 1)
        m = m_new
    number = tl.minimum(rows - i * WIDTH, WIDTH).to(tl.float32)
    share = tl.where(u < rows, 1.0 / (l * number), 0.0)
    for start in tl.range(0, blocks, BJ):
        j = start + tl.arange(0, BJ)
        mask = (u < rows)[:, None] & (j < blocks)[None, :]
        s = tl.load(sums_ptr + row_at[:, None] + j[None, :], mask=mask, other=float("-inf"))
        score = tl.sum(tl.exp2(s - m[:, None]) * share[:, None], 0)
        to = out_ptr + ((first + head) * q_blocks + i) * blocks + j
        tl.store(to, score, mask=j < blocks)


def launch(q: Tensor, k: Tensor, block: int, stride: int, scale: float) -> Tensor:
    """Run the kernels, as many heads at a time as the scratch takes; see the public function."""
    batch, heads, q_len, head_dim = q.shape
    kv_len, width = k.shape[2], block // stride
    rows, columns = triton.cdiv(q_len, stride), triton.cdiv(kv_len, stride)
    q_blocks, blocks = triton.cdiv(q_len, block), triton.cdiv(kv_len, block)
    out = torch.empty((batch, heads, q_blocks, blocks), dtype=torch.float32, device=q.device)
    together = max(1, min(batch * heads, SCRATCH // (4 * rows * blocks)))
    sums = torch.empty((together, rows, blocks), dtype=torch.float32, device=q.device)
    bu, bw, bk, warps = _tile(q, width)
    grid = triton.cdiv(rows, bu) * triton.cdiv(columns, bw)
    for first in range(0, batch * heads, together):
        number = min(together, batch * heads - first)
        _row_sums[(grid, number)](
            q, k, sums, *q.stride(), *k.stride(),
            heads, first, q_len, kv_len, rows, columns, blocks, scale / stride * LOG2E,
            D=head_dim, BK=bk, STRIDE=stride, WIDTH=width, BU=bu, BW=bw, GROUP=GROUP,
            num_warps=warps, num_stages=3,
        )  # fmt: skip
        _block_means[(q_blocks, number)](
            sums, out, first, rows, q_blocks, blocks,
            WIDTH=width, BJ=max(16, 2048 // width), num_warps=4,
        )  # fmt: skip
    return out


def _tile(q: Tensor, width: int) -> tuple[int, int, int, int]:
    """Rows, columns, step along head_dim and warps of a tile."""
    head_dim = q.shape[3]
    chunk = 64 if head_dim % 64 == 0 else 32
    if q.element_size() == 4:  # no tensor cores
        return 32, max(32, width), min(32, chunk), 4
    if q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 9:
        return 128, 256, chunk, 8  # three stages take 144 KiB
    return 128, 128, chunk, 8
