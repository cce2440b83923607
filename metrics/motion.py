"""Stand-ins without weights for VBench's motion smoothness and dynamic degree, by DIS flow.

Both look at one clip alone and so are easily fooled: blur and frozen frames score as perfectly
smooth. Read them as a distance from the dense run's own value, beside a metric that sees lost
motion (:func:`vidsparse.metrics.warp.flow_difference`). They are not VBench's numbers: those come
from AMT-S and RAFT, through :mod:`vidsparse.metrics.vbench`.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.metrics.clips import RawFrames, as_array
from vidsparse.metrics.flow import SMALLEST, check_flow, flow_between, grey, warp
from vidsparse.metrics.registry import metric


@metric(
    "proxy/motion_smoothness",
    label="Smoothness (DIS)",
    better="closer to dense",
    tier="stand-in",
    stands_in_for="vbench/motion_smoothness",
    alone=True,
    side=SMALLEST,
    frames=3,
    caveat="Frames interpolated along DIS flow instead of by AMT-S: blurred and frozen frames "
    "raise it.",
)
def motion_smoothness(frames: RawFrames) -> Tensor:
    """Return how well each odd frame is interpolated from its two neighbours.

    VBench's formula with another interpolation: ``(255 - mean |odd - predicted|) / 255``, the
    prediction being the mean of both neighbours, each warped half-way along DIS flow.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least three frames of 32 x 32 pixels.

    Returns:
        float64 ``((frames - 1) // 2,)``; a clip's value is their mean, 1 when all is still.

    Raises:
        BadInputError: When it is not a raw clip, too short or too small.
    """
    check_flow(frames, 3, "motion smoothness")
    errors = []
    for middle in range(1, len(frames) - 1, 2):
        first, truth, last = (as_array(frames[middle + shift]) for shift in (-1, 0, 1))
        error = cv2.absdiff(_between(first, last), truth.astype(np.float32))
        errors.append(float(error.mean(dtype=np.float64)))
    return (255 - torch.tensor(errors, dtype=torch.float64)) / 255


@metric(
    "proxy/dynamic_degree",
    label="Dynamics (DIS)",
    unit="x threshold",
    better="closer to dense",
    tier="stand-in",
    stands_in_for="vbench/dynamic_degree",
    alone=True,
    side=SMALLEST,
    frames=lambda fps: max(1, round(fps / 8)) + 1,
    caveat="DIS flow instead of RAFT, and how far above VBench's threshold instead of whether: "
    "above 1 means dynamic.",
)
def dynamic_degree(frames: RawFrames, fps: float = 16.0) -> Tensor:
    """Return how far a clip's motion lies above the least that VBench calls dynamic.

    VBench samples about 8 frames a second, takes the mean of the largest 5 % of the flow between
    each two, and calls a clip dynamic when at least ``round(n / 4)`` of the ``n`` samples exceed
    ``6 / 256`` of the short side. This is that rule without its last step: the ``round(n / 4)``-th
    largest value over the threshold, so above 1 means dynamic.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two samples of 32 x 32 pixels.
        fps: Frames per second of the clip.

    Returns:
        A float64 scalar, 0 when all is still.

    Raises:
        BadInputError: When it is not a raw clip, too short or too small, or ``fps`` not positive.
    """
    if not fps > 0:
        raise BadInputError(f"fps must be above 0, got {fps}: 16 is usual")
    stride = max(1, round(fps / 8))
    check_flow(frames, stride + 1, f"dynamic degree at {fps:g} fps")
    samples = range(0, len(frames), stride)
    speeds, then = [], grey(frames[0])
    for index in samples[1:]:
        now = grey(frames[index])
        speeds.append(_fastest(flow_between(then, now)))
        then = now
    needed = max(1, round(len(samples) / 4))
    threshold = 6 * min(frames.shape[1:3]) / 256
    return torch.tensor(sorted(speeds)[-needed] / threshold, dtype=torch.float64)


def _between(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the frame half-way between two, float32 ``(height, width, 3)``."""
    a, b = grey(first), grey(last)
    half = (flow_between(a, b) - flow_between(b, a)) / 4
    return (warp(first.astype(np.float32), -half) + warp(last.astype(np.float32), half)) / 2


def _fastest(flow: np.ndarray) -> float:
    """Return the mean length of the longest 5 % of a flow."""
    lengths = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    count = max(1, int(0.05 * lengths.size))
    return float(np.partition(lengths, -count)[-count:].mean(dtype=np.float64))
