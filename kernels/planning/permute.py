"""Token permutation: orders from labels, and copies of tensors in an order.

An order says where tokens are taken from: position ``p`` of the ordered sequence holds token
``order[p]``. Orders are int32 ``(B|1, H|1, seq)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton


def permute_tokens(x: Tensor, order: Tensor, *, impl: str = "auto") -> Tensor:
    """Copy tokens into an order: ``y[b, h, p] = x[b, h, order[b, h, p]]``.

    Args:
        x: ``(batch, heads, seq, dim)``, any strides.
        order: int32 ``(B|1, H|1, seq)``.
        impl: "triton", "reference" (plain torch, differentiable), or "auto": Triton on CUDA.

    Returns:
        ``(batch, heads, seq, dim)``, contiguous.

    Raises:
        BadInputError: For another ``impl``, or an order of another length.
    """
    _check(x, order)
    if use_triton(impl, x, differentiable=True):
        from vidsparse.kernels.triton.permute import gather

        return gather(x, order)
    return _taken(x, order)


def permute_together(xs: Sequence[Tensor], order: Tensor, *, impl: str = "auto") -> list[Tensor]:
    """``permute_tokens`` of two or three tensors, in one launch where they are alike.

    Args:
        xs: Each ``(batch, heads, seq, dim)``, any strides.
        order: int32 ``(B|1, H|1, seq)``.
        impl: As in ``permute_tokens``.
    """
    first = xs[0]
    alike = all(x.shape == first.shape and x.dtype == first.dtype for x in xs)
    if alike and all(use_triton(impl, x, differentiable=True) for x in xs):
        from vidsparse.kernels.triton.permute import gather_alike

        _check(first, order)
        return list(gather_alike(xs, order))
    return [permute_tokens(x, order, impl=impl) for x in xs]


def in_token_order(x: Tensor, order: Tensor | None) -> Tensor:
    """Tokens in an order, as ``permute_tokens`` puts them; as they stand where there is none."""
    return x if order is None else permute_tokens(x, order)


def unpermute_tokens(
    y: Tensor, order: Tensor, *, like: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """Undo ``permute_tokens``: ``x[b, h, order[b, h, p]] = y[b, h, p]``.

    Args:
        y: ``(batch, heads, seq, dim)``, any strides.
        order: int32 ``(B|1, H|1, seq)``, the order that y is in.
        like: A tensor of y's shape; the result gets the strides of ``torch.empty_like(like)``.
        impl: As in ``permute_tokens``.
    """
    _check(y, order)
    made = torch.empty_like(y if like is None else like, dtype=y.dtype)
    if use_triton(impl, y, differentiable=True):
        from vidsparse.kernels.triton.permute import scatter

        return scatter(y, order, made)
    if torch.is_grad_enabled() and y.requires_grad:
        return _taken(y, inverse_order(order))
    if _shared(order):
        return made.index_copy_(2, order[0, 0].long(), y)
    return made.copy_(_taken(y, inverse_order(order)))


def inverse_order(order: Tensor) -> Tensor:
    """The order that undoes another: ``inverse[order[p]] = p``, int32 of the same shape.

    Example:
        >>> inverse_order(torch.tensor([[[2, 0, 1]]], dtype=torch.int32))
        tensor([[[1, 2, 0]]], dtype=torch.int32)
    """
    position = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device)
    return torch.empty_like(order).scatter_(-1, order.long(), position.expand_as(order))


def order_by_label(labels: Tensor, clusters: int, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Sort tokens by label, stably, and say where each label starts.

    A counting sort: labels are few, so it reads them twice and never compares.

    Args:
        labels: int32 ``(batch, heads, seq)``, in ``[0, clusters)``.
        clusters: Number of labels.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        The order, int32 ``(batch, heads, seq)``, and the offsets of the clusters in it, int32
        ``(batch, heads, clusters + 1)``; an empty cluster starts where the next one does.
    """
    if use_triton(impl, labels):
        from vidsparse.kernels.triton.permute import counting_sort

        return counting_sort(labels, clusters)
    order = labels.argsort(dim=-1, stable=True).to(torch.int32)
    ends = sizes_by_label(labels, clusters).cumsum(dim=-1, dtype=torch.int32)
    return order, torch.cat([torch.zeros_like(ends[..., :1]), ends], dim=-1)


def sizes_by_label(labels: Tensor, clusters: int) -> Tensor:
    """How many tokens have each label, int32 ``(batch, heads, clusters)``; they are not sorted.

    Example:
        >>> sizes_by_label(torch.tensor([[[2, 0, 2]]]), 4)
        tensor([[[1, 0, 2, 0]]], dtype=torch.int32)
    """
    none = torch.zeros((*labels.shape[:2], clusters), dtype=torch.int32, device=labels.device)
    return none.scatter_add_(-1, labels.long(), torch.ones_like(labels, dtype=torch.int32))


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """Whole rows in an order, contiguous: number by number, a gather takes ten times as long."""
    if _shared(order):
        return x.index_select(2, order[0, 0])
    batch, heads, seq, dim = x.shape
    first = torch.arange(batch * heads, device=x.device).view(batch, heads, 1) * seq
    return x.reshape(-1, dim).index_select(0, (order + first).flatten()).view(x.shape)


def _shared(order: Tensor) -> bool:
    return order.shape[:2] == (1, 1)


def _check(x: Tensor, order: Tensor) -> None:
    if order.shape[-1] != x.shape[2]:
        raise BadInputError(f"the order is for {order.shape[-1]} tokens, got {x.shape[2]}")
