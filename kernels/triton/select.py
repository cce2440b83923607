"""Selection: a row of scores in registers, a search over bits, and a running sum for the list.

Scores become int32 keys that compare alike. The worst key that is kept is found by bisection
between the row's ends, which stops as soon as a cutoff has the right number above it: a dozen
counts for a row of random scores, 32 at most, and no more for NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.errors import BadInputError

WIDEST = 16384  # key blocks that fit a program's registers
FORCED: tl.constexpr = tl.constexpr(2**31 - 2)  # key of a block that is kept whatever it scores
ABSENT: tl.constexpr = tl.constexpr(-(2**31))  # key of what is no block; even -inf is above it
PROGRAMS = 4096  # that share the rows when a budget is counted
DIGIT = 4  # bits of a budget's cutoff that one count settles


@triton.jit
def _load_keys(
    score_ptr, always_ptr, lane, columns, s_n, a_n, HAS_ALWAYS: tl.constexpr
):  # fmt: skip
    """A row of scores, and int32 keys in the same order; NaN is -inf, both zeros are one."""
    valid = lane < columns
    score = tl.load(score_ptr + lane.to(tl.int64) * s_n, mask=valid, other=0.0).to(tl.float32)
    x = tl.where(score == score, score, float("-inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if HAS_ALWAYS:
        always = tl.load(always_ptr + lane.to(tl.int64) * a_n, mask=valid, other=0)
        keys = tl.where(always != 0, FORCED, keys)
    return score, tl.where(valid, keys, ABSENT)


@triton.jit
def _search(keys, weight, least, target, columns, WITH_SHARE: tl.constexpr):
    """The cutoffs of a row: all keys from ``hi`` on are kept, and ``need`` of those from ``lo``.

    At least ``least`` keys are kept, and ``weight`` that sums to ``target``. Also returns how
    many keys ``hi`` keeps.
    """
    lo = tl.min(tl.where(keys == ABSENT, FORCED, keys), 0)
    hi = tl.max(keys, 0) + 1
    from_lo = columns
    from_hi = columns * 0
    weight_hi = target * 0.0
    enough = least
    while (from_lo > enough) & (hi - 1 > lo):
        middle = (lo & hi) + ((lo ^ hi) >> 1)  # their mean, without overflow
        above = keys >= middle
        number = tl.sum(above.to(tl.int32), 0)
        reached = number >= least
        if WITH_SHARE:
            sum_above = tl.sum(tl.where(above, weight, 0.0), 0)
            reached = reached & (sum_above >= target)
            weight_hi = tl.where(reached, weight_hi, sum_above)
        lo = tl.where(reached, middle, lo)
        from_lo = tl.where(reached, number, from_lo)
        hi = tl.where(reached, hi, middle)
        from_hi = tl.where(reached, from_hi, number)
        if WITH_SHARE:
            enough = from_hi + 1
    need = least - from_hi
    if WITH_SHARE:
        # one key is left between the cutoffs, or equal ones: as many as the target takes
        worth = tl.max(tl.where((keys >= lo) & (keys < hi), weight, 0.0), 0)
        ties = tl.ceil((target - weight_hi) / tl.where(worth > 0, worth, 1.0))
        need = tl.maximum(need, tl.minimum(tl.maximum(ties, 0.0), 65536.0).to(tl.int32))
    return lo, hi, tl.minimum(need, from_lo - from_hi), from_hi


@triton.jit
def _select(
    score_ptr, always_ptr, cutoff_ptr, count_ptr, index_ptr,
    s_b, s_h, s_m, s_n, a_b, a_h, a_m, a_n, c_b, c_h, c_m,
    heads, columns, width, least, share,
    HAS_ALWAYS: tl.constexpr, WITH_SHARE: tl.constexpr, WITH_CUTOFF: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """The list of one row."""
    m = tl.program_id(0).to(tl.int64)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + m
    lane = tl.arange(0, BN)
    score_ptr += b * s_b + h * s_h + m * s_m
    if HAS_ALWAYS:
        always_ptr += b * a_b + h * a_h + m * a_m
    score, keys = _load_keys(score_ptr, always_ptr, lane, columns, s_n, a_n, HAS_ALWAYS)
    if HAS_ALWAYS:
        least = tl.maximum(least, tl.sum((keys == FORCED).to(tl.int32), 0))
    target = 0.0
    if WITH_SHARE:
        score = tl.where(score > 0, tl.minimum(score, 1e30), 0.0)  # NaN is not above zero
        target = tl.sum(score, 0) * share
    asked = least
    if WITH_CUTOFF:
        cutoff = tl.load(cutoff_ptr + b * c_b + h * c_h + m * c_m)
        reach = tl.sum((keys >= cutoff).to(tl.int32), 0)
        passed = reach >= least
        asked = tl.where(passed, columns, least)  # then there is nothing to search for
    lo, hi, need, number = _search(keys, score, asked, target, columns, WITH_SHARE)
    if WITH_CUTOFF:
        lo = tl.where(passed, cutoff, lo)
        hi = tl.where(passed, cutoff, hi)
        need = tl.where(passed, 0, need)
        number = tl.where(passed, reach, number)
    above = (keys >= hi).to(tl.int32)
    tied = ((keys >= lo) & (keys < hi)).to(tl.int32)
    both = tl.cumsum(above + (tied << 16), 0)  # two running sums in one
    tie_rank = both >> 16
    keep = (above != 0) | ((tied != 0) & (tie_rank <= need))
    place = (both & 0xFFFF) + tl.minimum(tie_rank, need) - 1
    number = tl.minimum(number + need, width)
    index_ptr += row * width
    tl.store(count_ptr + row, number)
    tl.store(index_ptr + place, lane, mask=keep & (place < width))
    tl.store(index_ptr + lane, tl.zeros_like(lane), mask=(lane >= number) & (lane < width))


@triton.jit
def _digit(keys, low, shift, LAST: tl.constexpr):
    """Where keys from ``low`` on lie in steps of ``1 << shift``; beyond the last one is in it."""
    above = (keys - low).to(tl.uint32, bitcast=True) >> shift
    return tl.minimum(above, LAST).to(tl.int32)


@triton.jit
def _tokens_by_digit(keys, sizes, low, shift, steps, CUTOFFS: tl.constexpr):
    """The sizes of a row's blocks, summed by digit, int64: a comparison and a sum for each."""
    digit = tl.where(keys >= low, _digit(keys, low, shift, CUTOFFS - 1), -1)
    tokens = tl.zeros([CUTOFFS], tl.int64)
    for step in tl.static_range(CUTOFFS):
        sum_of_step = tl.sum(tl.where(digit == step, sizes, 0), 0)
        tokens = tl.where(steps == step, sum_of_step.to(tl.int64), tokens)
    return tokens


@triton.jit
def _blocks_by_digit(keys, low, shift, steps, BN: tl.constexpr):
    """How many of a row's blocks have each of 16 digits, int64.

    Sixteen counts of four bits in one number: eight keys are added in them, the rest in wider ones.
    """
    digit = _digit(keys, low, shift, 15)
    one = (keys >= low).to(tl.int64) << (4 * digit).to(tl.int64)
    counts = tl.sum(tl.reshape(one, [8, BN // 8]), 0)
    even, odd = counts & 0x0F0F0F0F0F0F0F0F, (counts >> 4) & 0x0F0F0F0F0F0F0F0F
    fourth = steps % 4
    zero = tl.sum(even & 0x00FF00FF00FF00FF, 0)
    two = tl.sum((even >> 8) & 0x00FF00FF00FF00FF, 0)
    one = tl.sum(odd & 0x00FF00FF00FF00FF, 0)
    three = tl.sum((odd >> 8) & 0x00FF00FF00FF00FF, 0)
    word = tl.where(fourth < 2, tl.where(fourth == 0, zero, one), tl.where(fourth == 2, two, three))
    return (word >> (steps // 4 * 16).to(tl.int64)) & 0xFFFF


@triton.jit(do_not_specialize=["digit"])
def _spend(
    score_ptr, always_ptr, q_size_ptr, k_size_ptr, affordable_ptr, low_ptr, spent_ptr,
    s_b, s_h, s_m, s_n, a_b, a_h, a_m, a_n, q_b, q_h, q_m, k_b, k_h, k_n,
    heads, rows, columns, digit, digits,
    HAS_ALWAYS: tl.constexpr, BITS: tl.constexpr, BN: tl.constexpr, SHARED: tl.constexpr,
    TALL: tl.constexpr,
):  # fmt: skip
    """What the cutoffs of one more digit would cost: each program counts some rows.

    ``low``, the highest cutoff known to cost too much, moves up by what the last count found. Where
    all rows have the same columns, their blocks are counted as if all were as large as the first,
    and the others put right after.
    """
    CUTOFFS: tl.constexpr = 1 << BITS
    b = tl.program_id(1).to(tl.int64)
    steps = tl.arange(0, CUTOFFS)
    low_ptr += b * digits
    spent_ptr += (b * digits + digit) * CUTOFFS
    low = ABSENT
    if digit > 0:
        last = tl.load(spent_ptr - CUTOFFS + steps)  # the first is never counted: zero
        too_much = tl.sum((last > tl.load(affordable_ptr + b)).to(tl.int32), 0)
        low = tl.load(low_ptr + digit - 1) + (too_much << (32 - BITS * digit))
    if tl.program_id(0) == 0:
        tl.store(low_ptr + digit, low)
    shift = 32 - BITS * (digit + 1)
    lane = tl.arange(0, BN)
    score_ptr += b * s_b
    if HAS_ALWAYS:
        always_ptr += b * a_b
    q_size_ptr += b * q_b
    k_size_ptr += b * k_b
    usual = tl.load(k_size_ptr).to(tl.int64)
    total = tl.zeros([CUTOFFS], tl.int64)
    for row in tl.range(tl.program_id(0), heads * rows, tl.num_programs(0)):
        h, m = (row // rows).to(tl.int64), (row % rows).to(tl.int64)
        at = score_ptr + h * s_h + m * s_m
        always_at = always_ptr
        if HAS_ALWAYS:
            always_at = always_ptr + h * a_h + m * a_m
        _, keys = _load_keys(at, always_at, lane, columns, s_n, a_n, HAS_ALWAYS)
        queries = tl.load(q_size_ptr + h * q_h + m * q_m).to(tl.int64)
        if SHARED:
            tokens = _blocks_by_digit(keys, low, shift, steps, BN) * usual
        else:
            sizes_at = k_size_ptr + h * k_h + lane * k_n
            sizes = tl.load(sizes_at, mask=lane < columns, other=0).to(tl.int32)
            tokens = _tokens_by_digit(keys, sizes, low, shift, steps, CUTOFFS)
        total += tokens * queries
    if SHARED:
        sizes = tl.load(k_size_ptr + lane * k_n, mask=lane < columns, other=0).to(tl.int64)
        unusual = (lane < columns) & (sizes != usual)
        column = tl.min(tl.where(unusual, lane, BN), 0)
        while column < columns:
            more = tl.load(k_size_ptr + column * k_n).to(tl.int64) - usual
            for first in tl.range(tl.program_id(0), heads * rows, tl.num_programs(0) * TALL):
                some = first + tl.arange(0, TALL) * tl.num_programs(0)
                there = some < heads * rows
                some = tl.where(there, some, 0)
                head, line = (some // rows).to(tl.int64), (some % rows).to(tl.int64)
                scores_at = score_ptr + head * s_h + line * s_m
                forced_at = always_ptr
                if HAS_ALWAYS:
                    forced_at = always_ptr + head * a_h + line * a_m
                _, one_each = _load_keys(
                    scores_at, forced_at, column, columns, s_n, a_n, HAS_ALWAYS
                )
                weight = tl.load(q_size_ptr + head * q_h + line * q_m).to(tl.int64) * more
                step = tl.where(there & (one_each >= low), _digit(one_each, low, shift, 15), -1)
                pairs = tl.where(steps[:, None] == step[None, :], weight[None, :], 0)
                total += tl.sum(pairs, 1)
            column = tl.min(tl.where(unusual & (lane > column), lane, BN), 0)
    above = tl.sum(total, 0) - tl.cumsum(total, 0) + total  # of this digit and higher ones
    above = tl.where(steps > 0, above, 0)
    tl.atomic_add(spent_ptr + steps, above)  # of integers: the same in any order


@triton.jit
def _cutoff(affordable_ptr, low_ptr, spent_ptr, out_ptr, digits, shift, BITS: tl.constexpr):
    """The cutoff after the highest that costs too much, by the count of the last digit."""
    b = tl.program_id(0).to(tl.int64)
    CUTOFFS: tl.constexpr = 1 << BITS
    last = b * digits + digits - 1
    spent = tl.load(spent_ptr + last * CUTOFFS + tl.arange(0, CUTOFFS))
    above = tl.sum((spent > tl.load(affordable_ptr + b)).to(tl.int64), 0) + 1
    cutoff = tl.load(low_ptr + last).to(tl.int64) + (above << shift)
    tl.store(out_ptr + b, tl.minimum(cutoff, FORCED).to(tl.int32))


def rows(
    scores: Tensor,
    always: Tensor | None,
    width: int,
    *,
    least: int,
    share: float | None = None,
    cutoff: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lists row by row.

    Args:
        scores: ``(B|1, H|1, M, N)``.
        always: Boolean, broadcastable to ``scores``.
        width: Of the lists.
        least: Blocks that a row keeps at least.
        share: Of a row's sum, which the kept blocks reach.
        cutoff: Keys, int32, broadcastable to ``(B|1, H|1, M)``: all from there on are kept.
    """
    batch, heads, num_rows, columns = scores.shape
    if columns > WIDEST:
        raise BadInputError(f"a row has at most {WIDEST} blocks on a GPU, got {columns}")
    count = torch.empty(scores.shape[:3], dtype=torch.int32, device=scores.device)
    index = torch.empty((*scores.shape[:3], width), dtype=torch.int32, device=scores.device)
    forced, forced_strides = _always(scores, always)
    cutoff = None if cutoff is None else cutoff.expand(scores.shape[:3])
    wide = triton.next_power_of_2(columns)
    _select[(num_rows, batch * heads)](
        scores, forced, cutoff, count, index, *scores.stride(), *forced_strides,
        *((0, 0, 0) if cutoff is None else cutoff.stride()),
        heads, columns, width, min(max(least, 0), columns), 0.0 if share is None else share,
        HAS_ALWAYS=always is not None, WITH_SHARE=share is not None,
        WITH_CUTOFF=cutoff is not None, BN=wide, num_warps=max(1, wide // 1024),
    )  # fmt: skip
    return count, index


def budget_cutoff(
    scores: Tensor, always: Tensor | None, q_sizes: Tensor, kv_sizes: Tensor, affordable: Tensor
) -> Tensor:
    """The lowest key whose blocks cost at most ``affordable`` pairs, int32 ``(batch, 1, 1)``.

    Four bits of it at a time: each count reads the scores once. ``affordable`` is int64
    ``(batch,)``.
    """
    batch, heads, num_rows, columns = scores.shape
    bits = {torch.bfloat16: 16, torch.float16: 20}.get(scores.dtype, 32)  # the others are zero
    digits, wide = bits // DIGIT, max(8, triton.next_power_of_2(columns))
    low = torch.empty((batch, digits), dtype=torch.int32, device=scores.device)
    spent = torch.zeros((batch, digits, 1 << DIGIT), dtype=torch.int64, device=scores.device)
    forced, forced_strides = _always(scores, always)
    shared = kv_sizes.ndim == 1
    q_sizes, kv_sizes = (
        (size if size.ndim > 1 else size[None, None]).expand(batch, heads, -1)
        for size in (q_sizes, kv_sizes)
    )
    programs = min(max(1, PROGRAMS // batch), heads * num_rows)
    for digit in range(digits):
        _spend[(programs, batch)](
            scores, forced, q_sizes, kv_sizes, affordable, low, spent,
            *scores.stride(), *forced_strides, *q_sizes.stride(), *kv_sizes.stride(),
            heads, num_rows, columns, digit, digits,
            HAS_ALWAYS=always is not None, BITS=DIGIT, BN=wide, SHARED=shared, TALL=32,
            num_warps=max(1, wide // 1024),
        )  # fmt: skip
    cutoff = torch.empty((batch, 1, 1), dtype=torch.int32, device=scores.device)
    _cutoff[(batch,)](affordable, low, spent, cutoff, digits, 32 - bits, BITS=DIGIT, num_warps=1)
    return cutoff


def _always(scores: Tensor, always: Tensor | None) -> tuple[Tensor | None, tuple[int, ...]]:
    if always is None:
        return None, (0, 0, 0, 0)
    forced = always.view(torch.uint8).expand(scores.shape)
    return forced, forced.stride()
