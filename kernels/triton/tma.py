"""Tensors for the copies that Hopper's tensor memory accelerator (TMA) makes."""

from __future__ import annotations

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


def descriptor(x: Tensor, rows: int, head_dim: int) -> TensorDescriptor:
    """Of ``(batch, heads, seq, head_dim)``, copied ``rows`` at a time; see ``suits_tma``."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, head_dim], layout)


def suits_tma(x: Tensor) -> bool:
    """Whether memory is laid out for it."""
    aligned = all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1])
    return x.stride(-1) == 1 and aligned and x.data_ptr() % 16 == 0
