"""What several kernels share: numbers of base 2, rows of a view, strides of shared tensors."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634  # kernels take exp2: a scale or a logarithm times this is of base 2
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)  # and back


@triton.jit
def load_rows(
    ptr, positions, valid, stride_s, stride_d, D: tl.constexpr, BD: tl.constexpr,
    ALL: tl.constexpr = False,
):  # fmt: skip
    """Rows of a ``(seq, head_dim)`` view, zero where not valid: ``[rows, BD]``.

    With ``ALL`` every row is, and nothing is masked that is there.
    """
    dims = tl.arange(0, BD)
    at = ptr + positions.to(tl.int64)[:, None] * stride_s + dims[None, :].to(tl.int64) * stride_d
    if ALL and D == BD:
        rows = tl.load(at)
    elif ALL:
        rows = tl.load(at, mask=(dims < D)[None, :], other=0.0)
    else:
        rows = tl.load(at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
    return rows


@triton.jit
def only_finite(x):
    """Zero for what is no number or infinite."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)  # NaN is below nothing


def shared_strides(x: Tensor | None) -> tuple[int, int]:
    """Strides of the batch and the head dimension, 0 where one entry serves all."""
    if x is None:
        return 0, 0
    return tuple(0 if x.shape[i] == 1 else x.stride(i) for i in (0, 1))  # pyright: ignore


def first_unmet(reasons: Mapping[str, bool]) -> str | None:
    """The first reason not to run whose condition does not hold; None if all do."""
    return next((reason for reason, holds in reasons.items() if not holds), None)
