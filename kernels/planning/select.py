"""Selection: from block scores to the compact lists of a plan, on the device.

Every rule comes down to how many blocks a row keeps; which ones is then the same for all: the
always-kept ones, then those with the highest scores, ties by lower index, listed in ascending
order. A row never ends empty. NaN scores rank last.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton

Lists = tuple[Tensor, Tensor]

ROUNDING = 1e-6  # must not ask for a block beyond the last with any mass, nor refuse the last paid


def select_top_k(
    scores: Tensor,
    k: int,
    *,
    always: Tensor | None = None,
    max_always: int | None = None,
    impl: str = "auto",
) -> Lists:
    """Keep the k best blocks of each row, always-kept ones among them.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better.
        k: Blocks per row; a row whose always-kept blocks are more keeps them all.
        always: Boolean, broadcastable to ``scores``.
        max_always: The most always-kept blocks of any row, if known: it makes the lists as
            narrow as they can be. Unknown, they are N wide.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``kv_count`` int32 ``(B|1, H|1, M)`` and ``kv_index`` int32 ``(B|1, H|1, M, K)``.
    """
    number = scores.shape[-1]
    k = min(max(1, k), number)
    if always is None:
        max_always = 0
    width = number if max_always is None else min(number, max(k, max_always))
    if use_triton(impl, scores):
        from vidsparse.kernels.triton.select import rows

        return rows(scores, always, width, least=k)
    counts = torch.full(scores.shape[:-1], k, dtype=torch.int32, device=scores.device)
    return _best(scores, always, _at_least_always(counts, always), width)


def select_top_p(
    mass: Tensor, p: float, *, min_count: int = 1, always: Tensor | None = None, impl: str = "auto"
) -> Lists:
    """Keep the fewest best blocks of each row whose mass reaches a share of the row's total.

    The block that crosses the share is kept.

    Args:
        mass: Non-negative, ``(B|1, H|1, M, N)``.
        p: Share of the total of a row, in (0, 1].
        min_count: Blocks per row at least.
        always: Boolean, broadcastable to ``mass``; they count with their mass.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Raises:
        BadInputError: For p outside (0, 1].
    """
    if not 0 < p <= 1:
        raise BadInputError(f"p must be in (0, 1], got {p:g}")
    if use_triton(impl, mass):
        from vidsparse.kernels.triton.select import rows

        share = p * (1 - ROUNDING)
        return rows(mass, always, mass.shape[-1], least=max(1, min_count), share=share)
    mass = mass.float().nan_to_num(0.0)
    keys = sort_keys(mass, always)
    order = keys.argsort(dim=-1, descending=True, stable=True)
    reached = mass.gather(-1, order).cumsum(dim=-1)
    needed = (reached < p * (1 - ROUNDING) * reached[..., -1:]).sum(dim=-1, dtype=torch.int32) + 1
    counts = needed.clamp(min=min_count, max=mass.shape[-1])
    return _best(mass, always, _at_least_always(counts, always), mass.shape[-1])


def select_threshold(
    scores: Tensor,
    threshold: float | Tensor,
    *,
    min_count: int = 1,
    always: Tensor | None = None,
    impl: str = "auto",
) -> Lists:
    """Keep blocks that score at least a threshold, a number or a tensor that broadcasts."""
    if use_triton(impl, scores):
        from vidsparse.kernels.triton.select import rows

        if not isinstance(threshold, Tensor):  # filled there: a copy from the host would wait
            threshold = torch.full((), threshold, dtype=torch.float32, device=scores.device)
        threshold = threshold.to(scores.device, torch.float32)
        cutoff = sort_keys(threshold.nan_to_num(float("inf"), float("inf"), float("-inf")))
        cutoff = cutoff[..., 0] if cutoff.ndim else cutoff
        return rows(scores, always, scores.shape[-1], least=min_count, cutoff=cutoff)
    kept = scores >= threshold
    kept = kept if always is None else kept | always
    counts = kept.sum(dim=-1, dtype=torch.int32).clamp(min=min_count, max=scores.shape[-1])
    return _best(scores, always, counts, scores.shape[-1])


def select_budget(
    scores: Tensor,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    density: float | Tensor,
    *,
    min_count: int = 1,
    always: Tensor | None = None,
    tokens: int | None = None,
    impl: str = "auto",
) -> Lists:
    """Keep the best blocks of a whole layer under one density, shared among heads by need.

    Args:
        scores: ``(B|1, H, M, N)``, comparable between heads.
        q_sizes: Tokens in each query block, ``(M,)``, or ``(B|1, H|1, M)`` where heads differ.
        kv_sizes: Tokens in each key block, ``(N,)`` or ``(B|1, H|1, N)``.
        density: Share of all query-key pairs of a batch entry that may be computed, in (0, 1];
            of each batch entry, ``(B,)``, as a tensor.
        min_count: Blocks per row at least, whatever the budget says.
        always: Boolean, broadcastable to ``scores``; they are paid from the budget.
        tokens: Sum of the sizes of either side, where it is known; else it is made of them.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Raises:
        BadInputError: For a density outside (0, 1].
    """
    if not isinstance(density, Tensor) and not 0 < density <= 1:
        raise BadInputError(f"density must be in (0, 1], got {density:g}")
    entries, number = scores.shape[0], scores.shape[-1]
    if use_triton(impl, scores):
        from vidsparse.kernels.triton.select import budget_cutoff, rows

        if tokens is None or isinstance(density, Tensor):
            pairs = _all_pairs(scores, q_sizes, kv_sizes)
            affordable = affordable_pairs(pairs, density).expand(entries).contiguous()
        else:
            pairs = affordable_pairs(tokens**2 * scores.shape[1], density)
            affordable = torch.full((entries,), pairs, dtype=torch.int64, device=scores.device)
        cutoff = budget_cutoff(scores, always, q_sizes, kv_sizes, affordable)
        return rows(scores, always, number, least=min_count, cutoff=cutoff)
    ranking = Ranking(scores, q_sizes, kv_sizes, always=always)
    counts = ranking.keep(density).sum(dim=-1, dtype=torch.int32).clamp(min=min_count, max=number)
    return _best(scores, always, _at_least_always(counts, always), number)


def _all_pairs(scores: Tensor, q_sizes: Tensor, kv_sizes: Tensor) -> Tensor:
    """Pairs of each batch entry, int64 ``(batch,)``, or of any, ``()``, where they are alike."""
    pairs = q_sizes.long().sum(dim=-1) * kv_sizes.long().sum(dim=-1)
    return pairs.expand(scores.shape[:2]).sum(dim=-1)


class Ranking:
    """The blocks of a layer in the order in which a budget buys them: plain torch.

    Sorted once, it is cut at any number of densities.

    Args:
        scores: As in ``select_budget``; so are the others.
        q_sizes: Tokens in each query block.
        kv_sizes: Tokens in each key block.
        always: What is bought first.
    """

    def __init__(
        self, scores: Tensor, q_sizes: Tensor, kv_sizes: Tensor, *, always: Tensor | None = None
    ) -> None:
        self._keys = sort_keys(scores, always)
        cost = (q_sizes.long().unsqueeze(-1) * kv_sizes.long().unsqueeze(-2)).expand(scores.shape)
        ranked, order = self._keys.flatten(1).sort(dim=-1, descending=True)
        self._ranked = ranked
        self._spent = cost.flatten(1).gather(-1, order).cumsum(dim=-1)

    def keep(self, density: float | Tensor) -> Tensor:
        """What a density pays for, boolean of the shape of the scores; equals go together.

        Args:
            density: In (0, 1]; of each batch entry, ``(B,)``, as a tensor.
        """
        budget = affordable_pairs(self._spent[:, -1], density)
        bought = torch.searchsorted(self._spent, budget[:, None], right=True)
        last = self._spent.shape[-1] - 1
        first_too_dear = self._ranked.gather(-1, bought.clamp(max=last)).long()
        everything = bought > last
        cutoff = torch.where(everything, torch.iinfo(torch.int32).min, first_too_dear + 1)
        return self._keys >= cutoff[..., None, None]


@overload
def affordable_pairs(pairs: int, density: float) -> int: ...
@overload
def affordable_pairs(pairs: Tensor, density: float | Tensor) -> Tensor: ...
def affordable_pairs(pairs: Tensor | int, density: float | Tensor) -> Tensor | int:
    """The pairs that a density pays for, in whole numbers: not every device has float64.

    Args:
        pairs: All pairs, int64 of any shape or a number, below 2**50.
        density: In (0, 1], a number or a tensor that broadcasts; counted in parts of 2**-32
            with ``ROUNDING``, rounded up.

    Example:
        >>> affordable_pairs(torch.tensor(4_000), 0.25)
        tensor(1000)
    """
    parts = density * (1 + ROUNDING) * 2.0**32
    parts = parts.ceil().long() if isinstance(parts, Tensor) else math.ceil(parts)
    high, low = pairs >> 20, pairs & (2**20 - 1)  # their products with the parts fit 64 bits
    return (high * parts + ((low * parts) >> 20)) >> 12


def select_row_budget(
    scores: Tensor, kv_sizes: Tensor, tokens: Tensor, *, always: Tensor | None = None
) -> Lists:
    """Keep the best blocks of each row that a number of keys pays for; plain torch.

    Args:
        scores: ``(B|1, H|1, M, N)``, higher is better.
        kv_sizes: Tokens in each key block, ``(N,)`` or ``(B|1, H|1, N)``.
        tokens: Keys that each row may see, ``(B|1, H|1, M)``.
        always: Boolean, broadcastable to ``scores``; they are paid from the budget.
    """
    order = sort_keys(scores, always).argsort(dim=-1, descending=True, stable=True)
    spent = kv_sizes.unsqueeze(-2).expand(scores.shape).gather(-1, order).cumsum(dim=-1)
    counts = (spent <= tokens[..., None]).sum(dim=-1, dtype=torch.int32).clamp(min=1)
    return _best(scores, always, _at_least_always(counts, always), scores.shape[-1])


def sort_keys(scores: Tensor, always: Tensor | None = None) -> Tensor:
    """Integers in the order of the scores, int32; always-kept blocks above all, NaN below all."""
    bits = scores.float().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    bits = (bits + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    if always is None:
        return keys
    return keys.masked_fill(always, torch.iinfo(torch.int32).max)


def _at_least_always(counts: Tensor, always: Tensor | None) -> Tensor:
    if always is None:
        return counts
    return counts.maximum(always.sum(dim=-1, dtype=torch.int32))


def _best(scores: Tensor, always: Tensor | None, counts: Tensor, width: int) -> Lists:
    """The ``counts`` best blocks of each row, as ascending lists of at most ``width``."""
    counts = counts.clamp(max=width).expand(scores.shape[:-1]).contiguous()
    rank = sort_keys(scores, always).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    kept = rank < counts[..., None]
    index = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]
    return counts, index.to(torch.int32)
