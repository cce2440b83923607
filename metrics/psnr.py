"""PSNR of a clip against its reference: ``10 * log10(255**2 / MSE)`` per RGB frame, in dB.

The headline is the mean over the frames of a clip, then over clips. A frame equal to its
reference has infinite PSNR. It is neither capped nor hidden: it stays ``inf`` in the per-frame
values, it is counted as ``identical_frames``, and a mean is taken over the finite values beside
that count (so it never overstates the clip); when all values are infinite, so is the mean.
Errors are summed as integers, frame by frame, which is exact at any size and needs no copy of the
clip; torchmetrics pools frames, or takes them as floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.metrics.clips import RawFrames, frame_pairs
from vidsparse.metrics.registry import derived, metric


def psnr(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return the PSNR of each frame in dB; a frame equal to its reference gives ``inf``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``.
        reference: The same shape and dtype.

    Returns:
        float64 ``(frames,)``.

    Raises:
        BadInputError: When either is not a raw clip or the shapes differ.

    Example:
        >>> clip = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
        >>> other = clip.clone()
        >>> other[1] = 255
        >>> psnr(clip, other)
        tensor([inf, 0.], dtype=torch.float64)
    """
    return decibels(squared_error(frames, reference))


def decibels(mse: Tensor) -> Tensor:
    """Turn mean squared errors on the 0 to 255 scale into PSNR, same shape; zero gives ``inf``."""
    return 10 * torch.log10(255**2 / mse)


@metric(
    "psnr",
    label="PSNR",
    unit="dB",
    better="higher",
    caveat="Sameness with the dense clip, not quality: a harmless shift of one pixel lowers it. "
    "Mean over frames; identical frames are left out and counted.",
    value=decibels,
)
def squared_error(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return the mean squared error of each frame, float64 ``(frames,)``, from exact integers.

    Raises:
        BadInputError: As :func:`psnr`.
    """
    # Numbers, not tensors: kept between large ones, those would make the heap grow with the clip.
    errors = [
        (ours.int() - theirs.int()).square().sum().item() / ours.numel()
        for ours, theirs in frame_pairs(frames, reference)
    ]
    return torch.tensor(errors, dtype=torch.float64)


@derived(
    "psnr_pooled",
    of="psnr",
    label="PSNR, pooled",
    caveat="Of the error pooled over all frames: never above the mean over frames.",
)
def pooled(mse: Tensor) -> Tensor:
    """Return the PSNR of the mean of the squared errors of all frames."""
    return decibels(mse.mean())


@derived(
    "psnr_worst_frame",
    of="psnr",
    label="PSNR, worst frame",
    caveat="The frame furthest from dense.",
)
def worst(mse: Tensor) -> Tensor:
    """Return the PSNR of the frame of the largest squared error."""
    return decibels(mse.max())
