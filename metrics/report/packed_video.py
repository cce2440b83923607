"""One video of three: dense, sparse and their difference side by side, so that no player can drift.

The preview is lossy; every number in a report comes from the raw frames.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np

GAIN = 4  # how much the difference is amplified
LOOKS = cv2.COLORMAP_INFERNO


@dataclass(frozen=True, slots=True)
class Quality:
    """How much a preview may weigh.

    Attributes:
        height: Largest, in pixels.
        crf: x264's constant rate factor; higher is smaller.
    """

    height: int
    crf: int


QUALITIES = (
    Quality(480, 20), Quality(480, 24), Quality(360, 25), Quality(360, 29), Quality(240, 29),
    Quality(240, 33), Quality(144, 34),
)  # fmt: skip
# What the conversion from RGB makes of the colours, so that players agree.
_BT601 = {"colorspace": "smpte170m", "color_primaries": "smpte170m", "color_trc": "smpte170m"}


def packed_video(dense: np.ndarray, sparse: np.ndarray, fps: float, quality: Quality) -> bytes:
    """Encode H.264 in mp4: three panes from left to right, a key frame every 8 frames.

    Args:
        dense: uint8 ``(frames, height, width, 3)``; read frame by frame.
        sparse: The same shape.
        fps: Frames per second.
        quality: What it may weigh.
    """
    width, height = pane_size(dense, quality)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(quality.crf), "g": "8", "mbtree": "0", "color_range": "tv", **_BT601}
        rate = Fraction(fps).limit_denominator(65535)
        stream = container.add_stream("libx264", rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1  # the same frames, the same bytes
        stream.width, stream.height, stream.pix_fmt = 3 * width, height, "yuv420p"
        for ours, theirs in zip(dense, sparse, strict=True):
            panes = [ours, theirs, difference(ours, theirs)]
            shown = [_resized(pane, width, height) for pane in panes]
            pixels = np.ascontiguousarray(np.concatenate(shown, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def pane_size(frames: np.ndarray, quality: Quality) -> tuple[int, int]:
    """Width and height of a pane, even as yuv420p needs them; never more than a pixel larger."""
    _, height, width, _ = frames.shape
    scale = min(1.0, quality.height / height)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The largest difference of the three colours, amplified, as a heat map."""
    apart = np.abs(ours.astype(np.int16) - theirs).max(axis=-1) * GAIN
    heat = cv2.applyColorMap(np.minimum(apart, 255).astype(np.uint8), LOOKS)
    return cv2.cvtColor(heat, cv2.COLOR_BGR2RGB)


def colour_scale(steps: int = 12) -> list[str]:
    """Colours of the difference from none to all, as CSS."""
    levels = np.linspace(0, 255, steps).astype(np.uint8)[:, None]
    rgb = cv2.cvtColor(cv2.applyColorMap(levels, LOOKS), cv2.COLOR_BGR2RGB)[:, 0]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb.tolist()]


def _resized(pane: np.ndarray, width: int, height: int) -> np.ndarray:
    if pane.shape[:2] == (height, width):
        return pane
    return cv2.resize(np.ascontiguousarray(pane), (width, height), interpolation=cv2.INTER_AREA)
