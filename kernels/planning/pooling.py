"""Means of blocks of tokens, and of equal parts of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import block_of_token


def pool_blocks(
    x: Tensor,
    block: int,
    *,
    parts: int = 1,
    dtype: torch.dtype | None = None,
    finite: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Mean of each block of tokens, or of each of its equal parts; one pass over memory.

    Args:
        x: ``(batch, heads, seq, head_dim)``, any strides.
        block: Tokens in a block; a short last block averages only its own tokens.
        parts: Into how many parts a block is cut; a part without tokens has mean zero.
        dtype: Of the result; float32 (float64 for float64 input) when None.
        finite: Take what is no number or infinite for zero.
        impl: "triton", "reference" (plain torch, differentiable), or "auto": Triton on CUDA.

    Returns:
        ``(batch, heads, ceil(seq / block), head_dim)``; with more than one part
        ``(batch, heads, ceil(seq / block), parts, head_dim)``.

    Raises:
        BadInputError: For another ``impl``, or parts that do not divide the block.
    """
    if parts < 1 or block % parts:
        raise BadInputError(f"parts must divide the block of {block} tokens, got {parts}")
    wide = torch.promote_types(x.dtype, torch.float32)
    dtype = wide if dtype is None else dtype
    if use_triton(impl, x, differentiable=True):
        from vidsparse.kernels.triton.pooling import launch

        return launch(x, block, parts, dtype, finite)
    x = only_finite(x) if finite else x
    size = block // parts
    whole = x.shape[2] // size * size
    means = x[:, :, :whole].unflatten(2, (-1, size)).mean(dim=3, dtype=wide)
    if whole < x.shape[2]:
        means = torch.cat([means, x[:, :, whole:].mean(dim=2, keepdim=True, dtype=wide)], dim=2)
    if parts > 1:
        missing = -means.shape[2] % parts
        means = torch.cat([means, means.new_zeros(*x.shape[:2], missing, x.shape[3])], dim=2)
        means = means.unflatten(2, (-1, parts))
    return means.to(dtype)


def part_sizes(
    length: int, block: int, parts: int = 1, device: torch.device | str | None = None
) -> Tensor:
    """Tokens in each part of each block, float32 ``(ceil(length / block), parts)``.

    Example:
        >>> part_sizes(10, 8, 2)
        tensor([[4., 4.],
                [2., 0.]])
    """
    size = block // parts
    starts = torch.arange(-(-length // block) * parts, device=device) * size
    return (length - starts).clamp(min=0, max=size).float().unflatten(0, (-1, parts))


def pool_ragged(x: Tensor, offsets: Tensor, *, finite: bool = False, impl: str = "auto") -> Tensor:
    """Mean of each block of tokens, where blocks are of unequal size.

    Args:
        x: ``(batch, heads, seq, head_dim)``, any strides.
        offsets: Where blocks start, int32 ``(B|1, H|1, N + 1)``, from 0 to ``seq``.
        finite: Take what is no number or infinite for zero.
        impl: "triton", "reference" (plain torch, differentiable), or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, N, head_dim)``; a block without tokens has mean zero.
    """
    offsets = offsets.expand(*x.shape[:2], -1)
    if use_triton(impl, x, differentiable=True):
        from vidsparse.kernels.triton.pooling import launch_ragged

        return launch_ragged(x, offsets, finite)
    x = only_finite(x) if finite else x
    block = block_of_token(x.shape[2], 1, offsets)
    sums = torch.zeros(
        *x.shape[:2], offsets.shape[-1] - 1, x.shape[3], dtype=torch.float32, device=x.device
    ).scatter_add_(2, block[..., None].expand(x.shape), x.float())
    return sums / offsets.diff(dim=-1).clamp(min=1)[..., None]


def only_finite(x: Tensor) -> Tensor:
    """Zero for what is no number or infinite; x itself on a CPU where there is nothing of it."""
    if x.device.type == "cpu" and bool(x.sum().isfinite()):  # elsewhere, looking would wait
        return x
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
