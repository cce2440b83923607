"""Antidiagonal scores: one matrix product over groups of tokens, reduced to blocks in registers.

Each query group leaves one number for each key block, the log-sum over the block's groups. That is
1 / (block / stride) of the map of groups, and enough for a second, light kernel to normalise and
to average over query blocks: the product is computed once, and in tiles that fill tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.triton.primitives import LOG2E

SCRATCH = 2**28  # bytes of log-sums that may exist at a time
GROUP = 8  # tiles of queries that share their keys in L2


@triton.jit(do_not_specialize=["first"])
def _log_sums(
    q_ptr, k_ptr, sums_ptr, q_b, q_h, q_s, q_d, k_b, k_h, k_s, k_d,
    heads, first, q_len, kv_len, rows, blocks, scale_log2,
    D: tl.constexpr, BK: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr,
    WIDE: tl.constexpr, BU: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """BU query groups against BLOCKS key blocks of WIDTH groups, each padded to WIDE columns."""
    head = first + tl.program_id(1)
    q_ptr += (head // heads).to(tl.int64) * q_b + (head % heads).to(tl.int64) * q_h
    k_ptr += (head // heads).to(tl.int64) * k_b + (head % heads).to(tl.int64) * k_h
    tiles = tl.cdiv(blocks, BLOCKS)
    group = tl.program_id(0) // (GROUP * tiles)
    height = tl.minimum(tl.cdiv(rows, BU) - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * tiles)
    u = (group * GROUP + inside % height) * BU + tl.arange(0, BU)
    first_block = inside // height * BLOCKS

    lane = tl.arange(0, BLOCKS * WIDE)
    v = (first_block + lane // WIDE) * WIDTH + lane % WIDE
    exists = (lane % WIDE < WIDTH) & (v.to(tl.int64) * STRIDE < kv_len)
    dims = tl.arange(0, BK)
    q_ptr += (u.to(tl.int64) * STRIDE * q_s)[:, None] + dims.to(tl.int64)[None, :] * q_d
    k_ptr += (v.to(tl.int64) * STRIDE * k_s)[:, None] + dims.to(tl.int64)[None, :] * k_d
    s = tl.zeros([BU, BLOCKS * WIDE], tl.float32)
    CHUNKS: tl.constexpr = (D + BK - 1) // BK
    for step in tl.range(0, STRIDE * CHUNKS):
        r = step // CHUNKS
        dim = step % CHUNKS * BK
        mirrored = STRIDE - 1 - r
        dim_valid = (dim + dims < D)[None, :]
        q_mask = (u * STRIDE + r < q_len)[:, None] & dim_valid
        k_mask = (exists & (v * STRIDE + mirrored < kv_len))[:, None] & dim_valid
        q_at = r.to(tl.int64) * q_s + dim.to(tl.int64) * q_d
        k_at = mirrored.to(tl.int64) * k_s + dim.to(tl.int64) * k_d
        q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0)
        k = tl.load(k_ptr + k_at, mask=k_mask, other=0.0)
        s = tl.dot(q, tl.trans(k), s, input_precision="ieee")

    s = tl.where(exists[None, :], s * scale_log2, float("-inf"))
    s = tl.reshape(s, [BU, BLOCKS, WIDE])
    top = tl.max(s, 2)
    top = tl.where(top == float("-inf"), 0.0, top)  # a block after the last, which is not stored
    sums = top + tl.log2(tl.sum(tl.exp2(s - top[:, :, None]), 2))
    block = first_block + tl.arange(0, BLOCKS)
    to = (tl.program_id(1).to(tl.int64) * rows + u)[:, None] * blocks + block[None, :]
    tl.store(sums_ptr + to, sums, mask=(u < rows)[:, None] & (block < blocks)[None, :])


@triton.jit(do_not_specialize=["first"])
def _block_means(
    sums_ptr, out_ptr, first, rows, q_blocks, blocks,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """One query block: normalise its groups, and average them."""
    i = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDE)
    u = i * WIDTH + lane
    mine = (lane < WIDTH) & (u < rows)
    row_at = (head * rows + u) * blocks
    m = tl.full([WIDE], float("-inf"), tl.float32)
    l = tl.zeros([WIDE], tl.float32)
    for start in tl.range(0, blocks, BJ):
        j = start + tl.arange(0, BJ)
        mask = mine[:, None] & (j < blocks)[None, :]
        # groups that do not exist are zeros, to stay finite; they weigh nothing below
        s = tl.load(sums_ptr + row_at[:, None] + j[None, :], mask=mask, other=0.0)
        s = tl.where((j < blocks)[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        l = l * tl.exp2(m - m_new) + tl.sum(tl.exp2(s - m_new[:, None]), 1)
        m = m_new
    number = tl.minimum(rows - i * WIDTH, WIDTH).to(tl.float32)
    weight = tl.where(mine, 1.0 / (l * number), 0.0)
    for start in tl.range(0, blocks, BJ):
        j = start + tl.arange(0, BJ)
        mask = mine[:, None] & (j < blocks)[None, :]
        s = tl.load(sums_ptr + row_at[:, None] + j[None, :], mask=mask, other=float("-inf"))
        score = tl.sum(tl.exp2(s - m[:, None]) * weight[:, None], 0)
        to = out_ptr + ((first + head) * q_blocks + i) * blocks + j
        tl.store(to, score, mask=j < blocks)


def launch(q: Tensor, k: Tensor, block: int, stride: int, scale: float) -> Tensor:
    """Run the kernels for as many heads at a time as the scratch takes."""
    batch, heads, q_len, head_dim = q.shape
    kv_len, width = k.shape[2], block // stride
    wide = triton.next_power_of_2(width)
    if wide > 256:
        raise BadInputError(f"block / stride must be at most 256 on a GPU, got {width}")
    rows = triton.cdiv(q_len, stride)
    q_blocks, blocks = triton.cdiv(q_len, block), triton.cdiv(kv_len, block)
    out = torch.empty((batch, heads, q_blocks, blocks), dtype=torch.float32, device=q.device)
    together = max(1, min(batch * heads, SCRATCH // (4 * rows * blocks)))
    sums = torch.empty((together, rows, blocks), dtype=torch.float32, device=q.device)
    bu, bv, bk, warps = _tile(q)
    per_tile = max(1, bv // wide)
    tiles = triton.cdiv(rows, bu) * triton.cdiv(blocks, per_tile)
    for first in range(0, batch * heads, together):
        number = min(together, batch * heads - first)
        _log_sums[(tiles, number)](
            q, k, sums, *q.stride(), *k.stride(),
            heads, first, q_len, kv_len, rows, blocks, scale / stride * LOG2E,
            D=head_dim, BK=bk, STRIDE=stride, WIDTH=width, WIDE=wide, BU=bu, BLOCKS=per_tile,
            GROUP=GROUP, num_warps=warps, num_stages=3,
        )  # fmt: skip
        _block_means[(q_blocks, number)](
            sums, out, first, rows, q_blocks, blocks,
            WIDTH=width, WIDE=wide, BJ=max(16, 2048 // wide), num_warps=4,
        )  # fmt: skip
    return out


def _tile(q: Tensor) -> tuple[int, int, int, int]:
    """Query groups, key groups and dims of a tile, and warps."""
    dims = 64 if q.shape[3] % 64 == 0 else 32
    if q.element_size() == 4:  # no tensor cores
        return 32, 32, 32, 4
    if q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 9:
        return 128, 256, dims, 8  # three stages take 144 KiB of shared memory
    return 128, 128, dims, 8
