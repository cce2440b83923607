"""Temporal PSNR: PSNR of what changes from frame to frame, in dB.

    tPSNR_t = 10 * log10(255**2 / mean((x_(t+1) - x_t) - (y_(t+1) - y_t))**2)

over all pixels and channels of the signed differences. Errors that stay in place do not count,
errors that come and go count twice: independent errors in every frame read 3 dB below PSNR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.metrics.clips import RawFrames, check_length, frame_pairs
from vidsparse.metrics.psnr import decibels
from vidsparse.metrics.registry import metric


@metric(
    "temporal_psnr",
    label="Temporal PSNR",
    unit="dB",
    better="higher",
    frames=2,
    caveat="PSNR of the changes from frame to frame: errors that stay in place do not count, "
    "those that come and go count twice.",
)
def temporal_psnr(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return the PSNR of each frame-to-frame change in dB; an equal change gives ``inf``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames.
        reference: The same shape and dtype.

    Returns:
        float64 ``(frames - 1,)``, from exact integers.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or there is one frame.

    Example:
        >>> still, blinking = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8)
        >>> blinking[2] = 255
        >>> temporal_psnr(blinking, still)
        tensor([inf, 0.], dtype=torch.float64)
    """
    check_length(frames, 2, "temporal PSNR")
    squares, before = [], None
    for ours, theirs in frame_pairs(frames, reference):
        error = ours.int() - theirs.int()
        if before is not None:
            squares.append((error - before).square().sum().item() / error.numel())
        before = error
    return decibels(torch.tensor(squares, dtype=torch.float64))
