"""PSNR of a clip against its reference: ``10 * log10(255**2 / MSE)`` per RGB frame, in dB.

The headline is the mean over the frames of a clip, then over clips. A frame equal to its
reference has infinite PSNR. It is neither capped nor hidden: it stays ``inf`` in the per-frame
values, it is counted as ``identical_frames``, and a mean is taken over the finite values beside
that count (so it never overstates the clip); when all values are infinite, so is the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vidsparse.errors import BadInputError

# A clip as pixels: uint8 RGB, shape (frames, height, width, 3).
RawFrames = Tensor | np.ndarray


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


class PSNR(Metric):
    """PSNR accumulated over clips; ``compute()`` is the mean over frames, then over clips.

    The mean squared error of every frame is kept. Inside ``with metric.sync_context():`` the
    other values cover all processes too, as ``compute()`` always does.

    Attributes:
        mse: One float64 ``(frames,)`` tensor per clip.

    Args:
        kwargs: Options of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    mse: list[Tensor]
    clip_frames: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("mse", [], dist_reduce_fx="cat")
        self.add_state("clip_frames", [], dist_reduce_fx="cat")

    def update(self, frames: RawFrames, reference: RawFrames) -> None:
        """Add one clip; both ``(frames, height, width, 3)`` uint8."""
        self.mse.append(squared_error(frames, reference).to(self.device))
        self.clip_frames.append(torch.tensor([len(frames)], device=self.device))

    def compute(self) -> Tensor:
        """Return the mean over clips of each clip's mean PSNR, in dB."""
        clips = split_clips(self.mse, self.clip_frames)
        return finite_mean(torch.stack([finite_mean(decibels(mse)) for mse in clips]))

    def pooled(self) -> Tensor:
        """Return the PSNR of the error pooled over all frames of all clips, in dB."""
        return decibels(dim_zero_cat(self.mse).mean())

    def worst_frame(self) -> Tensor:
        """Return the PSNR of the worst frame of all clips, in dB."""
        return decibels(dim_zero_cat(self.mse).max())

    def identical_frames(self) -> int:
        """Return how many frames of all clips equal their reference."""
        return int((dim_zero_cat(self.mse) == 0).sum())


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


def decibels(mse: Tensor) -> Tensor:
    """Turn mean squared errors on the 0 to 255 scale into PSNR, same shape; zero gives ``inf``."""
    return 10 * torch.log10(255**2 / mse)


def finite_mean(values: Tensor) -> Tensor:
    """Return the mean of the finite entries of ``(count,)``; ``inf`` when there are none."""
    finite = values[values.isfinite()]
    return finite.mean() if finite.numel() else values.new_tensor(torch.inf)


def split_clips(values: list[Tensor], clip_frames: list[Tensor]) -> list[Tensor]:
    """Return per-frame values clip by clip, whether or not processes were synced in between."""
    return list(dim_zero_cat(values).split(dim_zero_cat(clip_frames).tolist()))


def frame_pairs(frames: RawFrames, reference: RawFrames) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two clips frame by frame, each ``(height, width, 3)`` uint8 on one device.

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
    for ours, theirs in zip(frames, reference, strict=True):
        pixels = as_tensor(ours)
        yield pixels, as_tensor(theirs).to(pixels.device)


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


def as_tensor(frame: RawFrames) -> Tensor:
    """Return one frame as a tensor that may be written to."""
    return frame if isinstance(frame, Tensor) else torch.tensor(frame)  # copies: may be read-only
