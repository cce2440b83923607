"""Temporal PSNR: PSNR of what changes from frame to frame, in dB.

    tPSNR_t = 10 * log10(255**2 / mean((x_(t+1) - x_t) - (y_(t+1) - y_t))**2)

over all pixels and channels of the signed differences. Errors that stay in place do not count,
errors that come and go count twice: independent errors in every frame read 3 dB below PSNR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.metrics.clips import PerClip, check_length
from vidsparse.metrics.psnr import RawFrames, decibels, frame_pairs


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


class TemporalPSNR(PerClip):
    """Temporal PSNR accumulated over clips; ``compute()`` is the mean over changes, then clips."""

    higher_is_better = True

    def update(self, frames: RawFrames, reference: RawFrames) -> None:
        """Add one clip; both ``(frames, height, width, 3)`` uint8."""
        self.add(temporal_psnr(frames, reference))
