"""VBench's temporal flickering, to the letter: how little each pixel changes between frames.

    flickering = (255 - mean over t of mean |I_t - I_(t+1)|) / 255

over all pixels and channels of the uint8 frames at full size; 1 when nothing changes at all. It
is the one VBench dimension that needs no weights. VBench runs it on videos that its RAFT filter
found static: on any other, motion itself lowers the value, while blur and frozen frames raise
it. So read it as a distance from the dense run's own value. Paper: arXiv 2311.17982.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.metrics.clips import RawFrames, check_length, consecutive
from vidsparse.metrics.registry import metric


@metric(
    "vbench/temporal_flickering",
    label="Temporal flickering",
    better="closer to dense",
    alone=True,
    frames=2,
    caveat="VBench's formula, which VBench applies to static videos only: motion lowers it, "
    "blurred and frozen frames raise it.",
)
def temporal_flickering(frames: RawFrames) -> Tensor:
    """Return the score of each pair of consecutive frames; a clip's value is their mean.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames.

    Returns:
        float64 ``(frames - 1,)``, from exact integers.

    Raises:
        BadInputError: When it is not a raw clip, or has one frame.

    Example:
        >>> clip = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
        >>> clip[1] = 51
        >>> temporal_flickering(clip)
        tensor([0.8000], dtype=torch.float64)
    """
    check_length(frames, 2, "temporal flickering")
    changes = [
        (now.int() - then.int()).abs().sum().item() / now.numel()
        for then, now in consecutive(frames)
    ]
    return (255 - torch.tensor(changes, dtype=torch.float64)) / 255
