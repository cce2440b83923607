"""Motion against the reference's, by DIS flow: stand-ins for tOF and for the warping error.

Neither is the published number: TecoGAN's tOF uses Farneback flow and a crop, Lai et al.'s
warping error FlowNet2 flow. Papers: arXiv 1811.09393 and 1808.00449.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vidsparse.metrics.clips import RawFrames, as_array, frame_pairs
from vidsparse.metrics.flow import SMALLEST, check_flow, flow_between, grey, visible, warp
from vidsparse.metrics.registry import metric


@metric(
    "proxy/flow_difference",
    label="Flow difference (DIS)",
    unit="px",
    better="lower",
    tier="stand-in",
    stands_in_for="tOF",
    side=SMALLEST,
    frames=2,
    caveat="Sees lost or added motion, hardly a blur; DIS flow, so not comparable with published"
    " tOF.",
)
def flow_difference(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return how much the motion of each pair of frames differs from the reference's, in pixels.

    The mean over pixels of the length of the difference of the two flows. It sees motion that was
    lost, added or moved elsewhere, and hardly a blur.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames of 32 x 32 pixels.
        reference: The same shape and dtype.

    Returns:
        float64 ``(frames - 1,)``; 0 where the motion is the same.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or it is too short or
            too small.
    """
    check_flow(frames, 2, "flow difference")
    differences, before = [], None
    for ours, theirs in frame_pairs(frames, reference):
        now = grey(ours), grey(theirs)
        if before is not None:
            gap = flow_between(before[0], now[0]) - flow_between(before[1], now[1])
            differences.append(float(np.hypot(gap[..., 0], gap[..., 1]).mean(dtype=np.float64)))
        before = now
    return torch.tensor(differences, dtype=torch.float64)


@metric(
    "proxy/warp_error",
    label="Warp error (DIS)",
    unit="10^-3",
    better="closer to dense",
    tier="stand-in",
    stands_in_for="E_warp",
    side=SMALLEST,
    frames=2,
    caveat="Along the dense clip's DIS flow: sees flicker, noise and lost motion; a blur lowers "
    "it.",
)
def warp_error(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return how badly each frame follows from the one before along the reference's motion.

    One thousand times the mean squared difference, on the 0 to 1 scale, of each frame to the one
    before it warped along the *reference's* flow, over the pixels where that flow can be trusted.
    It sees flicker, noise and lost motion. A blur scores better than the reference: compare with
    the reference's own value, ``warp_error(reference, reference)``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames of 32 x 32 pixels.
        reference: The same shape and dtype.

    Returns:
        float64 ``(frames - 1,)``; NaN where no pixel can be followed, as at a cut.

    Raises:
        BadInputError: As :func:`flow_difference`.
    """
    check_flow(frames, 2, "warp error")
    errors, before = [], None
    for pair in frame_pairs(frames, reference):
        now = [as_array(frame) for frame in pair]
        if before is not None:
            errors.append(_pair_error(before, now))
        before = now
    return torch.tensor(errors, dtype=torch.float64)


def _pair_error(before: list[np.ndarray], now: list[np.ndarray]) -> float:
    """Return the warp error of two consecutive frames, each given as ours and the reference's."""
    then_grey, now_grey = grey(before[1]), grey(now[1])
    back, forth = flow_between(now_grey, then_grey), flow_between(then_grey, now_grey)
    trusted = visible(back, forth)
    if not trusted.any():
        return float("nan")
    error = now[0].astype(np.float32) - warp(before[0].astype(np.float32), back)
    return 1e3 * float(np.square(error[trusted] / 255).mean(dtype=np.float64))
