"""What exact rows gain over a sparse output, added to the runs of rows around them."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.planning.pooling import only_finite

LEAST = 1e-6  # of likeness, below which there is none


def correct_runs(
    out: Tensor,
    exact: Tensor,
    rows: Tensor,
    every: int,
    *,
    start: int,
    length: int,
    agreed: bool,
    impl: str = "auto",
) -> None:
    """Add to each run of rows of ``out`` what its exact row gains, in place.

    Args:
        out: ``(batch, heads, seq, head_dim)``, any strides.
        exact: The exact row of each run, ``(batch, heads, ceil(length / every), head_dim)``.
        rows: Where they stand in ``out``, int64 ``(runs,)``: each in its run.
        every: Rows in a run; the last may be short.
        start: First row of the first run.
        length: Rows of all runs.
        agreed: Add as much as ``agreement`` says, and leave exact rows exact; else all of it.
        impl: "triton", "reference" (plain torch, differentiable), or "auto": Triton on CUDA.

    Raises:
        BadInputError: For another ``impl``.
    """
    if use_triton(impl, out, differentiable=True):
        from vidsparse.kernels.triton.runs import launch

        launch(out, exact, rows, every, start, length, agreed, LEAST)
        return
    gained = only_finite(exact.float() - out.index_select(2, rows).float())
    if agreed:
        gained = gained * agreement(gained)
    _add_to_runs(out.narrow(2, start, length), gained.to(out.dtype), every)
    if agreed:
        out.index_copy_(2, rows, exact)


def agreement(gained: Tensor) -> Tensor:
    """How far what two neighbouring rows gain is alike, in each head: from 0 to 1.

    A share c of what rows so far apart gain is common to both; half as far apart, as the rows of a
    run are on average, it is the root of c if likeness decays exponentially.

    Args:
        gained: ``(batch, heads, rows, head_dim)``, in order.

    Returns:
        ``(batch, heads, 1, 1)``; with one row, 1.
    """
    if gained.shape[2] < 2:
        return gained.new_ones((*gained.shape[:2], 1, 1))
    first, second = gained[:, :, :-1], gained[:, :, 1:]
    common = (first * second).sum(dim=(2, 3), keepdim=True)
    energy = (first.square() + second.square()).sum(dim=(2, 3), keepdim=True) / 2
    share = common / energy.clamp(min=torch.finfo(energy.dtype).tiny)
    alike = share > LEAST
    return torch.where(alike, share, 1.0).clamp(max=1).sqrt() * alike  # at 0 a root has no slope


def _add_to_runs(out: Tensor, rows: Tensor, every: int) -> None:
    """Add ``rows[:, :, r]`` to the rows ``out[:, :, r * every : (r + 1) * every]``, in place."""
    whole = out.shape[2] // every
    out[:, :, : whole * every].unflatten(2, (whole, every)).add_(rows[:, :, :whole, None])
    out[:, :, whole * every :].add_(rows[:, :, whole:])
