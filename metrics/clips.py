"""What the metrics share: how a clip is walked through, and how clips are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vidsparse.errors import BadInputError
from vidsparse.metrics.psnr import RawFrames, as_tensor, check_raw, finite_mean, split_clips


class PerClip(Metric):
    """Keeps a float64 vector of every clip; ``compute()`` is its mean, then the mean over clips.

    What is infinite is left out of a mean, unless there is nothing else. A subclass names its
    direction and calls ``add`` in its ``update``.

    Attributes:
        values: One vector per clip: of its frames, of its pairs of frames, or one number.

    Args:
        kwargs: Options of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("lengths", [], dist_reduce_fx="cat")

    def add(self, values: Tensor) -> None:
        """Add the ``(count,)`` values of one clip."""
        self.values.append(values.to(self.device))
        self.lengths.append(torch.tensor([len(values)], device=self.device))

    def compute(self) -> Tensor:
        """Return the mean over clips of each clip's mean, a float64 scalar."""
        clips = split_clips(self.values, self.lengths)
        return finite_mean(torch.stack([finite_mean(values) for values in clips]))

    def lowest(self) -> Tensor:
        """Return the smallest value of all clips."""
        return dim_zero_cat(self.values).min()

    def highest(self) -> Tensor:
        """Return the largest value of all clips."""
        return dim_zero_cat(self.values).max()


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


def as_array(frame: RawFrames) -> np.ndarray:
    """Return one frame as an array in memory, for OpenCV."""
    return np.ascontiguousarray(frame.cpu().numpy() if isinstance(frame, Tensor) else frame)
