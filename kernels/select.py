"""From block scores to the lists of a plan, on the device and without a host sync.

Every selector ranks the blocks of a row alike: always-kept blocks first, then by score, ties to
the lower index, NaN with the worst. No row is ever empty. Lists are ascending; entries after the
count are zero. Results do not depend on how work was split, so they are deterministic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidsparse.errors import BadInputError

WIDEST = 16384  # key blocks: what fits a program's registers

Lists = tuple[Tensor, Tensor]


def select_top_k(
    scores: Tensor,
    k: int,
    always: Tensor | None = None,
    *,
    max_always: int | None = None,
    impl: str = "auto",
) -> Lists:
    """Keep the ``k`` best blocks of each row, or the always-kept ones where those are more.

    Args:
        scores: ``(B|1, H|1, M, N)``, any strides.
        k: Blocks of a row, of which at least one and at most all are kept.
        always: Boolean, broadcastable to the scores: kept whatever they score, and counted.
        max_always: The most always-kept blocks that any row has, if known: lists are then
            ``max(k, max_always)`` wide. When None they are ``k`` wide without, and ``N`` wide
            with always-kept blocks, since counting those would need a host sync. A row with more
            than it says loses its last ones.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``kv_count``, int32 ``(B|1, H|1, M)``, and ``kv_index``, int32 ``(B|1, H|1, M, K)``.
    """
    columns = scores.shape[-1]
    k = min(max(k, 1), columns)
    width = columns
    if always is None:
        width = k
    elif max_always is not None:
        width = min(columns, max(k, max_always))
    if _use_triton(impl, scores):
        from vidsparse.kernels.triton.select import rows

        return rows(scores, always, width, least=k)
    return _lists(_best(scores, always, _least(scores, always, k)), width)


def select_top_p(
    scores: Tensor,
    p: float,
    always: Tensor | None = None,
    *,
    min_count: int = 1,
    impl: str = "auto",
) -> Lists:
    """Keep the fewest blocks of each row whose scores together reach the share ``p``.

    Args:
        scores: Probabilities, or other shares that are not negative, ``(B|1, H|1, M, N)``.
        p: Share of a row's sum, in [0, 1]; the block that crosses it is kept.
        always: Boolean, broadcastable to the scores: kept whatever they score, and counted.
        min_count: Blocks that are kept at least.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        As ``select_top_k``, with lists ``N`` wide.
    """
    if not 0 <= p <= 1:
        raise BadInputError(f"p must be in [0, 1], got {p}")
    if _use_triton(impl, scores):
        from vidsparse.kernels.triton.select import rows

        return rows(scores, always, scores.shape[-1], least=min_count, share=p)
    order = _ranking(scores, always).argsort(dim=-1, descending=True, stable=True)
    shares = scores.double().nan_to_num(0).clamp(min=0)
    before = shares.gather(-1, order).cumsum(dim=-1).roll(1, dims=-1)
    before[..., 0] = 0
    needed = (before < p * shares.sum(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
    least = _least(scores, always, min_count)
    return _lists(_best(scores, always, needed.maximum(least)), scores.shape[-1])


def select_threshold(
    scores: Tensor,
    cutoff: float | Tensor,
    always: Tensor | None = None,
    *,
    min_count: int = 1,
    impl: str = "auto",
) -> Lists:
    """Keep the blocks that score at least ``cutoff``.

    Args:
        scores: ``(B|1, H|1, M, N)``.
        cutoff: A number, or a tensor broadcastable to ``(B|1, H|1, M)``.
        always: Boolean, broadcastable to the scores: kept whatever they score.
        min_count: Blocks that are kept at least: the best ones where fewer reach the cutoff.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        As ``select_top_k``, with lists ``N`` wide.
    """
    cutoff = torch.as_tensor(cutoff, dtype=torch.float32, device=scores.device)
    cutoff = cutoff.expand(scores.shape[:3])
    if _use_triton(impl, scores):
        from vidsparse.kernels.triton.select import rows

        return rows(scores, always, scores.shape[-1], least=min_count, cutoff=cutoff)
    keep = _best(scores, always, _least(scores, always, min_count))
    return _lists(keep | (scores >= cutoff[..., None]), scores.shape[-1])


def select_budget(
    scores: Tensor,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    density: float,
    always: Tensor | None = None,
    *,
    min_count: int = 1,
    impl: str = "auto",
) -> Lists:
    """Keep the best blocks of all heads together, as many pairs as one density pays for.

    One cutoff for a batch entry: the lowest whose blocks, with every row's always-kept and
    ``min_count`` best ones, cost no more than the budget. Heads that need more get more. Blocks
    with equal scores are kept or dropped as one; what a row keeps at least is kept even if it
    costs more than the budget.

    Args:
        scores: ``(B|1, H|1, M, N)``, comparable across heads. Of bfloat16 and float16 scores
            fewer bits are searched.
        q_sizes: Tokens in each query block, ``(M,)`` or ``(B|1, H|1, M)``.
        kv_sizes: Tokens in each key block, ``(N,)`` or ``(B|1, H|1, N)``.
        density: Share of the query-key pairs of all heads of a batch entry.
        always: Boolean, broadcastable to the scores: kept whatever they score, and counted.
        min_count: Blocks that each row keeps at least.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        As ``select_top_k``, with lists ``N`` wide.
    """
    batch, heads, rows_, columns = scores.shape
    q_sizes = q_sizes.long().expand(batch, heads, rows_)
    kv_sizes = kv_sizes.long().expand(batch, heads, columns)
    pairs = (q_sizes.sum(dim=-1) * kv_sizes.sum(dim=-1)).sum(dim=-1)
    # a hair more, so that a density that was computed from pairs pays for those pairs
    affordable = (pairs.double() * (density * (1 + 1e-9))).long()
    if _use_triton(impl, scores):
        from vidsparse.kernels.triton.select import budget

        return budget(scores, always, q_sizes, kv_sizes, affordable, min_count)
    forced = _best(scores, always, _least(scores, always, min_count))
    ranking = _ranking(scores, None).masked_fill(forced, math.inf).flatten(1)
    cost = (q_sizes[..., None] * kv_sizes[:, :, None]).flatten(1)
    ranked, order = ranking.sort(dim=-1, descending=True)
    too_much = cost.gather(-1, order).cumsum(dim=-1) > affordable[:, None]
    # the best score that cannot be paid for: it and its ties are dropped
    first = ranked.masked_fill(~too_much, -math.inf).amax(dim=-1, keepdim=True)
    all_paid = ~too_much.any(dim=-1, keepdim=True)
    keep = ((ranking > first) | all_paid).unflatten(1, (heads, rows_, columns))
    return _lists(keep | forced, columns)


def _ranking(scores: Tensor, always: Tensor | None) -> Tensor:
    """Scores as they are compared: NaN is the worst, always-kept blocks are the best."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    ranking = scores.to(wide).nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)
    if always is None:
        return ranking
    # infinite scores give way, so that nothing ties with the always-kept
    return ranking.clamp(max=torch.finfo(wide).max).masked_fill(always, math.inf)


def _least(scores: Tensor, always: Tensor | None, number: int) -> Tensor:
    """Blocks that each row must keep, ``(B|1, H|1, M, 1)``."""
    number = min(max(number, 1), scores.shape[-1])
    least = torch.full((*scores.shape[:3], 1), number, device=scores.device)
    if always is None:
        return least
    return least.maximum(always.expand(scores.shape).sum(dim=-1, keepdim=True))


def _best(scores: Tensor, always: Tensor | None, number: Tensor) -> Tensor:
    """Mask of the ``number`` best blocks of each row."""
    order = _ranking(scores, always).argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[-1], device=scores.device).expand(order.shape)
    return torch.zeros_like(order).scatter_(-1, order, ranks) < number


def _lists(keep: Tensor, width: int) -> Lists:
    index = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]
    count = keep.sum(dim=-1, keepdim=True).clamp(max=width)
    index = index.where(torch.arange(width, device=keep.device) < count, 0)
    return count[..., 0].to(torch.int32), index.to(torch.int32)


def _use_triton(impl: str, scores: Tensor) -> bool:
    if impl not in ("auto", "triton", "reference"):
        raise BadInputError(f"unknown impl {impl!r}: choose auto, triton or reference")
    small = scores.dtype != torch.float64 and scores.shape[-1] <= WIDEST
    if impl == "triton" and not small:
        raise BadInputError(
            f"triton selects from up to {WIDEST} key blocks in at most float32, "
            f"got {scores.shape[-1]} in {scores.dtype}: use larger blocks, or impl='reference'"
        )
    return impl == "triton" or (impl == "auto" and scores.is_cuda and small)
