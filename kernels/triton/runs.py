"""What exact rows gain, added to runs of rows: found in one kernel, added in another.

Torch would make a score of passes over what is gained, and move a quarter as many bytes a second in
the broadcast that adds it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton.primitives import load_rows, only_finite

GAINS = 16  # exact rows of a program that finds what they gain
ROWS = 64  # of a program that adds it


@triton.jit
def _gain(
    out_ptr, exact_ptr, position_ptr, gained_ptr, sums_ptr,
    out_b, out_h, out_s, out_d, exact_b, exact_h, exact_s, exact_d, heads, runs,
    D: tl.constexpr, BD: tl.constexpr, GAINS: tl.constexpr,
):  # fmt: skip
    """Write what ``GAINS`` rows gain, and two sums over pairs of each with the next one."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    out_ptr += b * out_b + h * out_h
    exact_ptr += b * exact_b + h * exact_h
    row = tl.program_id(0) * GAINS + tl.arange(0, GAINS)
    valid = row < runs
    at = tl.load(position_ptr + row, mask=valid, other=0)
    sparse = load_rows(out_ptr, at, valid, out_s, out_d, D, BD).to(tl.float32)
    exact = load_rows(exact_ptr, row, valid, exact_s, exact_d, D, BD).to(tl.float32)
    gained = only_finite(exact - sparse)
    dims = tl.arange(0, BD)
    to = gained_ptr + (tl.program_id(1).to(tl.int64) * runs + row[:, None]) * D + dims[None, :]
    tl.store(to, gained, mask=valid[:, None] & (dims < D)[None, :])
    paired = row + 1 < runs
    at = tl.load(position_ptr + row + 1, mask=paired, other=0)
    sparse = load_rows(out_ptr, at, paired, out_s, out_d, D, BD).to(tl.float32)
    exact = load_rows(exact_ptr, row + 1, paired, exact_s, exact_d, D, BD).to(tl.float32)
    following = only_finite(exact - sparse)
    mine = tl.where(paired[:, None], gained, 0.0)
    common = tl.sum(tl.sum(mine * following, 1), 0)
    energy = tl.sum(tl.sum(mine * mine + following * following, 1), 0) / 2
    to = sums_ptr + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(to, common)
    tl.store(to + 1, energy)


@triton.jit
def _add(
    out_ptr, exact_ptr, position_ptr, gained_ptr, sums_ptr,
    out_b, out_h, out_s, out_d, exact_b, exact_h, exact_s, exact_d,
    heads, runs, parts, start, length, every, least, tiny,
    AGREED: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Correct ``ROWS`` rows of one (batch, head)."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < length
    run = row // every
    gained_ptr += tl.program_id(1).to(tl.int64) * runs * D
    added = load_rows(gained_ptr, run, valid, D, 1, D, BD)
    if AGREED and runs > 1:
        part = tl.arange(0, BP)
        sums_ptr += tl.program_id(1) * parts * 2
        common = tl.sum(tl.load(sums_ptr + part * 2, mask=part < parts, other=0.0), 0)
        energy = tl.sum(tl.load(sums_ptr + part * 2 + 1, mask=part < parts, other=0.0), 0)
        share = common / tl.maximum(energy, tiny)
        added *= tl.where(share > least, tl.sqrt(tl.minimum(share, 1.0)), 0.0)
    dtype = out_ptr.dtype.element_ty
    added = added.to(dtype).to(tl.float32)  # rounded as torch rounds it
    dims = tl.arange(0, BD)
    at = out_ptr + b * out_b + h * out_h
    at += (start + row).to(tl.int64)[:, None] * out_s + dims[None, :].to(tl.int64) * out_d
    mask = valid[:, None] & (dims < D)[None, :]
    corrected = tl.load(at, mask=mask, other=0.0).to(tl.float32) + added
    if AGREED:
        own = tl.load(position_ptr + run, mask=valid, other=-1) == start + row
        exact_ptr += b * exact_b + h * exact_h
        exact = load_rows(exact_ptr, run, own, exact_s, exact_d, D, BD).to(tl.float32)
        corrected = tl.where(own[:, None], exact, corrected)
    tl.store(at, corrected.to(dtype), mask=mask)


def launch(
    out: Tensor, exact: Tensor, rows: Tensor, every: int, start: int, length: int, agreed: bool,
    least: float,
) -> None:  # fmt: skip
    """Run the kernels; arguments as in ``correct_runs``, and the least likeness that counts."""
    batch, heads, _, head_dim = out.shape
    runs, exact = len(rows), exact.to(out.dtype)
    parts = triton.cdiv(runs, GAINS)
    gained = torch.empty((batch * heads, runs, head_dim), dtype=torch.float32, device=out.device)
    sums = torch.empty((batch * heads, parts, 2), dtype=torch.float32, device=out.device)
    sizes = {"D": head_dim, "BD": max(16, triton.next_power_of_2(head_dim)), "num_warps": 4}
    tensors = out, exact, rows, gained, sums, *out.stride(), *exact.stride()
    _gain[(parts, batch * heads)](*tensors, heads, runs, GAINS=GAINS, **sizes)
    _add[(triton.cdiv(length, ROWS), batch * heads)](
        *tensors, heads, runs, parts, start, length, every, least, torch.finfo(torch.float32).tiny,
        AGREED=agreed, ROWS=ROWS, BP=triton.next_power_of_2(parts), **sizes,
    )  # fmt: skip
