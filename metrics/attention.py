"""How close a sparse attention call is to dense attention of the same q, k and v.

Of each head, over sampled query rows and all channels, with ``o`` the sparse output and ``d`` the
dense one:

    relative L1 = sum |o - d| / sum |d|        cosine = (o . d) / (|o| |d|)
    recall      = dense attention mass on the pairs that were computed / all of it

Tensors are ``(batch, heads, seq, head_dim)``; what is dense is computed in float32, or in float64
when q is float64, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 1 << 24  # scores held at a time: 64 MiB
GOLDEN = 0.6180339887498949


class AttentionError(NamedTuple):
    """Three measures of each head, all ``(batch, heads)``.

    Attributes:
        relative_l1: 0 when equal; lower is better.
        cosine: 1 when equal up to a factor; higher is better.
        recall: Share of the mass in [0, 1]; higher is better.
    """

    relative_l1: Tensor
    cosine: Tensor
    recall: Tensor


def sample_rows(seq: int, count: int, device: torch.device | str | None = None) -> Tensor:
    """Rows spread over a sequence without a period: at most ``count``, int64, ascending.

    Evenly spaced rows could fall on one column of the video; multiples of the golden ratio do not.

    Example:
        >>> sample_rows(10, 4).tolist()
        [0, 2, 6, 8]
    """
    if count >= seq:
        return torch.arange(seq, device=device)
    share = torch.arange(count, dtype=torch.float64) * GOLDEN % 1.0  # float64, so on the host
    return (share * seq).long().unique().to(device)


def dense_rows(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Return dense attention of the queries given, which may be a sample of all.

    Args:
        q: ``(batch, heads, rows, head_dim)``.
        k: ``(batch, heads, seq, head_dim)``.
        v: ``(batch, heads, seq, head_dim)``.
        scale: Score scale, ``head_dim ** -0.5`` when None.

    Returns:
        ``(batch, heads, rows, head_dim)``, float32 or float64.
    """
    value = v.to(_precise(q))
    return torch.cat([share @ value for _, share in _shares(q, k, scale)], dim=2)


def relative_l1(out: Tensor, exact: Tensor) -> Tensor:
    """Return the relative L1 distance of each head, ``(batch, heads)``; 0 when both are zero.

    Args:
        out: ``(batch, heads, rows, head_dim)``.
        exact: The same shape.

    Example:
        >>> exact = torch.tensor([[[[1.0, -3.0]]]])
        >>> relative_l1(torch.tensor([[[[2.0, -3.0]]]]), exact)
        tensor([[0.2500]])
    """
    distance = (out.to(exact.dtype) - exact).abs().sum(dim=(2, 3))
    size = exact.abs().sum(dim=(2, 3))
    return distance / size.clamp(min=torch.finfo(exact.dtype).tiny)


def cosine(out: Tensor, exact: Tensor) -> Tensor:
    """Return the cosine similarity of each head, all its rows as one vector, ``(batch, heads)``.

    Args:
        out: ``(batch, heads, rows, head_dim)``.
        exact: The same shape.
    """
    flat = out.to(exact.dtype).flatten(2), exact.flatten(2)
    return torch.nn.functional.cosine_similarity(*flat, dim=-1)


def block_mass(
    q: Tensor,
    k: Tensor,
    q_block: Tensor,
    kv_block: Tensor,
    blocks: tuple[int, int],
    scale: float | None = None,
) -> Tensor:
    """Return the dense attention mass of each pair of blocks: softmax shares, summed over pairs.

    A query has the mass 1, so a map sums to the number of queries.

    Args:
        q: ``(batch, heads, rows, head_dim)``; a sample of the queries will do.
        k: ``(batch, heads, seq, head_dim)``.
        q_block: The block of each query, int64 ``(batch|1, heads|1, rows)``.
        kv_block: The block of each key, int64 ``(batch|1, heads|1, seq)``.
        blocks: How many blocks of queries and of keys there are.
        scale: Score scale, ``head_dim ** -0.5`` when None.

    Returns:
        ``(batch, heads, *blocks)``, float32 or float64.
    """
    batch, heads, _, _ = q.shape
    total = torch.zeros(batch, heads, *blocks, dtype=_precise(q), device=q.device)
    columns = kv_block.expand(batch, heads, -1)[:, :, None]
    for rows, share in _shares(q, k, scale):
        by_key = share.new_zeros(*share.shape[:3], blocks[1])
        by_key.scatter_add_(3, columns.expand_as(share), share)
        labels = q_block[..., rows].expand(batch, heads, -1)[..., None]
        total.scatter_add_(2, labels.expand_as(by_key), by_key)
    return total


def recall(mass: Tensor, keep: Tensor) -> Tensor:
    """Return the share of the mass of each head that lies in kept blocks, ``(batch, heads)``.

    Args:
        mass: ``(batch, heads, M, N)``.
        keep: Boolean ``(batch|1, heads|1, M, N)``.
    """
    return (mass * keep).sum(dim=(2, 3)) / mass.sum(dim=(2, 3))


def _shares(q: Tensor, k: Tensor, scale: float | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few rows at a time, with their softmax ``(batch, heads, few, seq)``."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    key = k.to(_precise(q))
    few = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, q.shape[2], few):
        rows = slice(start, start + few)
        yield rows, (q[:, :, rows].to(key.dtype) @ key.mT * factor).softmax(dim=-1)


def _precise(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
