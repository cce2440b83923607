"""A row for each run of neighbouring rows, added to all of them."""

from __future__ import annotations

from torch import Tensor

from vidsparse.kernels.dispatch import use_triton


def add_to_runs(out: Tensor, rows: Tensor, every: int, *, impl: str = "auto") -> None:
    """Add ``rows[:, :, r]`` to the rows ``out[:, :, r * every : (r + 1) * every]``, in place.

    Args:
        out: ``(batch, heads, seq, head_dim)``, any strides.
        rows: ``(batch, heads, ceil(seq / every), head_dim)``, of the dtype of ``out``.
        every: Rows in a run; the last may be short.
        impl: "triton", "reference" (plain torch, differentiable), or "auto": Triton on CUDA.

    Raises:
        BadInputError: For another ``impl``.
    """
    if use_triton(impl, out, differentiable=True):
        from vidsparse.kernels.triton.runs import launch

        launch(out, rows, every)
        return
    whole = out.shape[2] // every
    out[:, :, : whole * every].unflatten(2, (whole, every)).add_(rows[:, :, :whole, None])
    out[:, :, whole * every :].add_(rows[:, :, whole:])
