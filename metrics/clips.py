"""What the metrics share: how a clip is checked and walked through, and its values averaged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vidsparse.errors import BadInputError

# A clip as pixels: uint8 RGB, shape (frames, height, width, 3).
RawFrames = Tensor | np.ndarray


def finite_mean(values: Tensor) -> Tensor:
    """Return the mean of the finite entries of ``(count,)``; ``inf`` when there are none."""
    finite = values[values.isfinite()]
    return finite.mean() if finite.numel() else values.new_tensor(torch.inf)


def frame_pairs(frames: RawFrames, reference: RawFrames) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two clips frame by frame, each ``(height, width, 3)`` uint8 on one device.

    Raises:
        BadInputError: When either is not a raw clip or the shapes differ.
    """
    check_pair(frames, reference)
    for ours, theirs in zip(frames, reference, strict=True):
        pixels = as_tensor(ours)
        yield pixels, as_tensor(theirs).to(pixels.device)


def check_pair(frames: RawFrames, reference: RawFrames) -> None:
    """Refuse what are not two clips of one shape.

    Raises:
        BadInputError: When either is not a raw clip or the shapes differ.
    """
    for name, clip in {"frames": frames, "reference": reference}.items():
        check_raw(name, clip)
    if tuple(frames.shape) != tuple(reference.shape):
        raise BadInputError(
            f"frames {tuple(frames.shape)} and reference {tuple(reference.shape)} differ in "
            "shape: compare clips of one length and one size"
        )


def check_raw(name: str, clip: RawFrames) -> None:
    """Refuse, with a :class:`BadInputError`, what is not a clip of raw frames."""
    if not isinstance(clip, Tensor | np.ndarray):
        raise BadInputError(
            f"{name} must be a uint8 tensor or array, got {type(clip).__name__}: stack its frames"
        )
    if clip.dtype not in (torch.uint8, np.uint8):
        raise BadInputError(
            f"{name} must be raw uint8 frames, got {clip.dtype}: convert a pipeline's output "
            "with vidsparse.pipelines.running.video.to_uint8"
        )
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise BadInputError(
            f"{name} must have shape (frames, height, width, 3) with no empty side, "
            f"got {tuple(clip.shape)}: put the colours last and drop the batch dimension"
        )


def check_length(frames: RawFrames, least: int, metric: str) -> None:
    """Refuse what is not a clip of raw frames, or too short a one.

    Raises:
        BadInputError: When it is not a raw clip, or has fewer than ``least`` frames.
    """
    check_raw("frames", frames)
    if len(frames) < least:
        raise BadInputError(
            f"{metric} needs at least {least} frames, got {len(frames)}: compare a longer clip"
        )


def consecutive(frames: RawFrames) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each frame and the next, both ``(height, width, 3)`` uint8."""
    then = as_tensor(frames[0])
    for index in range(1, len(frames)):
        now = as_tensor(frames[index])
        yield then, now
        then = now


def as_tensor(frame: RawFrames) -> Tensor:
    """Return one frame as a tensor that may be written to."""
    return frame if isinstance(frame, Tensor) else torch.tensor(frame)  # copies: may be read-only


def as_array(frame: RawFrames) -> np.ndarray:
    """Return one frame as an array in memory, for OpenCV."""
    return np.ascontiguousarray(frame.cpu().numpy() if isinstance(frame, Tensor) else frame)
