"""Optical flow with DIS (OpenCV, no weights), and frames warped along it.

A flow from ``a`` to ``b`` is float32 ``(height, width, 2)``: what lies at ``x`` in ``a`` lies at
``x + flow(x)`` in ``b``, in pixels, horizontal first. Papers use RAFT or FlowNet2; DIS agrees
with a known translation to a tenth of a pixel, but reads the largest displacements of real
scenes up to a tenth higher than RAFT. Paper: Kroeger et al., arXiv 1603.03590.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from vidsparse.errors import BadInputError
from vidsparse.metrics.clips import RawFrames, as_array, check_length

SMALLEST = 32


def check_flow(frames: RawFrames, least: int, metric: str) -> None:
    """Refuse a clip too short or too small for flow.

    Raises:
        BadInputError: When it is not a raw clip, has too few frames or a side below 32.
    """
    check_length(frames, least, metric)
    height, width = frames.shape[1:3]
    if min(height, width) < SMALLEST:
        raise BadInputError(
            f"{metric} needs frames of at least {SMALLEST} x {SMALLEST} pixels for optical flow, "
            f"got {height} x {width}: compare larger frames, or use PSNR"
        )


def grey(frame: RawFrames) -> np.ndarray:
    """Return the luma of a ``(height, width, 3)`` uint8 frame, uint8 ``(height, width)``."""
    return cv2.cvtColor(as_array(frame), cv2.COLOR_RGB2GRAY)


def flow_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the flow from one grey frame to another, float32 ``(height, width, 2)``."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(a, b, None)  # pyright: ignore


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return ``image`` read at ``x + flow(x)``, bilinear, its border repeated; same dtype."""
    x, y = _grid(*flow.shape[:2])
    where = (x + flow[..., 0], y + flow[..., 1])
    return cv2.remap(image, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def visible(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Return where a flow can be trusted: it stays inside the frame and leads back again.

    The test of Sundaram, Brox and Keutzer (2010) that warp errors are usually computed with:
    ``|there + back'|^2 <= 0.01 (|there|^2 + |back'|^2) + 0.5``, ``back'`` read where ``there``
    points.

    Returns:
        bool ``(height, width)``.
    """
    height, width = there.shape[:2]
    x, y = _grid(height, width)
    x, y = x + there[..., 0], y + there[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    returned = warp(back, there)
    gap = np.square(there + returned).sum(-1)
    size = np.square(there).sum(-1) + np.square(returned).sum(-1)
    return inside & (gap <= 0.01 * size + 0.5)


@lru_cache(maxsize=1)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column and the row of every pixel, each float32 ``(height, width)``."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x, y
