"""A block mask as bits: what a plan is remembered by."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton

Lists = tuple[Tensor, Tensor]


def pack_bits(mask: Tensor) -> Tensor:
    """Eight booleans of the last dimension in a byte.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    missing = -mask.shape[-1] % 8
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, missing)).unflatten(-1, (-1, 8))
    weight = 1 << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits * weight).sum(dim=-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, length: int) -> Tensor:
    """The booleans again.

    Example:
        >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    shift = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shift) & 1).bool().flatten(-2)[..., :length]


def pack_lists(count: Tensor, index: Tensor, number: int, *, impl: str = "auto") -> Tensor:
    """The bits of the mask that lists of blocks are, which itself is never written on a GPU.

    Args:
        count: How many blocks each row lists, int32 ``(B|1, H|1, M)``.
        index: Which, in any order, int32 ``(B|1, H|1, M, K)``.
        number: Blocks that a row could list, N.
        impl: "triton", "reference" (plain torch), or "auto": Triton on CUDA.

    Returns:
        uint8 ``(B|1, H|1, M, ceil(N / 8))``.

    Raises:
        BadInputError: For another ``impl``.
    """
    if use_triton(impl, index):
        from vidsparse.kernels.triton.bits import pack

        return pack(count, index, number)
    used = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    listed = torch.zeros(*count.shape, number, dtype=torch.int32, device=index.device)
    return pack_bits(listed.scatter_add_(-1, index.where(used, 0).long(), used.int()) > 0)


def lists_of_bits(packed: Tensor, number: int, *, impl: str = "auto") -> Lists:
    """Ascending lists of the blocks whose bits are set; a row without any lists the first block.

    Args:
        packed: uint8 ``(B|1, H|1, M, ceil(N / 8))``, as ``pack_bits`` and ``pack_lists`` make them.
        number: Blocks that a row could list, N.
        impl: "triton", "reference" (plain torch), or "auto": Triton on CUDA.

    Returns:
        The counts, int32 ``(B|1, H|1, M)``, and the lists, int32 ``(B|1, H|1, M, N)``.

    Raises:
        BadInputError: For another ``impl``.
    """
    if use_triton(impl, packed):
        from vidsparse.kernels.triton.bits import unpack

        return unpack(packed, number)
    keep = unpack_bits(packed, number)
    index = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)
    return keep.sum(dim=-1, dtype=torch.int32).clamp(min=1), index.to(torch.int32)
