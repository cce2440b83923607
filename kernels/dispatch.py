"""Whether the Triton version of an operator runs, or the plain one: asked in one place."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from vidsparse.errors import BadInputError

INSTALLED = importlib.util.find_spec("triton") is not None


def use_triton(
    impl: str,
    x: Tensor,
    *,
    able: bool = True,
    differentiable: bool = False,
    besides: tuple[str, ...] = (),
) -> bool:
    """Whether Triton is asked for: by name, or by "auto" on CUDA where it is installed.

    Args:
        impl: "auto", "triton", "reference", or a name in ``besides``.
        x: What the operator reads, on the device in question.
        able: Whether the Triton version can run this case; "auto" asks, the name does not.
        differentiable: Whether gradients flow through the plain version only: "auto" then takes
            that where ``x`` wants them.
        besides: Other versions that the operator has.

    Raises:
        BadInputError: For another ``impl``, or Triton by name where it cannot run.
    """
    names = ("auto", "triton", *besides, "reference")
    if impl not in names:
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise BadInputError(f"unknown impl {impl!r}: choose {known}")
    if impl == "triton":
        if problem := why_no_triton(x.device.type):
            raise BadInputError(problem)
        return True
    wants_gradients = differentiable and torch.is_grad_enabled() and x.requires_grad
    return impl == "auto" and x.is_cuda and INSTALLED and able and not wants_gradients


def why_no_triton(device_type: str) -> str | None:
    """Why Triton's kernels do not run on a kind of device, or None."""
    if not INSTALLED:
        return "triton is not installed (pip install triton)"
    if device_type != "cuda" and not _interpreted():
        return f"triton kernels need a CUDA device, the tensors are on {device_type}"
    return None


def _interpreted() -> bool:
    import triton.knobs

    return bool(triton.knobs.runtime.interpret)
