"""NSS distance: how far the texture statistics of a clip lie from those of its reference.

NIQE's 36 natural-scene statistics of every patch of every frame, at full and at half size; a
Gaussian is fitted to the patches of each clip, and with its mean ``m`` and covariance ``S``

    distance = sqrt((m_x - m_y)^T ((S_x + S_y) / 2)^-1 (m_x - m_y))

NIQE itself measures the distance to pristine photographs, whose statistics are weights we do not
have; here the reference is the dense clip, so this says "other texture than dense" (blur, noise,
grain), never "worse picture". Unlike NIQE, no patch is left out. Paper: Mittal, Soundararajan and
Bovik, "Making a completely blind image quality analyzer", 2013.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.metrics.clips import RawFrames, check_length, check_raw
from vidsparse.metrics.flow import grey
from vidsparse.metrics.registry import metric

SMALLEST = 64
_SHAPES = np.arange(0.2, 10, 0.001)
_RATIOS = np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES))


@metric(
    "proxy/nss_distance",
    label="Texture distance (NSS)",
    better="lower",
    tier="stand-in",
    stands_in_for="vbench/imaging_quality",
    side=SMALLEST,
    caveat="NIQE's statistics with the dense clip in the place of pristine photographs: says "
    "other texture than dense, never worse picture. Comparable at one size and length "
    "only.",
)
def nss_distance(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return the distance of two clips' texture statistics, a float64 scalar; 0 when equal.

    The covariance of ``n`` patches is shrunk towards its diagonal by ``36 / (36 + n)``, so that
    small clips have one too; values are comparable at one size and length only. Patches are 96
    pixels wide as in NIQE, or 32 where a side is below 192.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least 64 pixels high and wide.
        reference: As many pixels; the number of frames may differ.

    Raises:
        BadInputError: When either is not a raw clip or too small, or the sizes differ.
    """
    check_raw("reference", reference)
    check_length(frames, 1, "NSS distance")
    if tuple(frames.shape[1:]) != tuple(reference.shape[1:]):
        raise BadInputError(
            f"frames {tuple(frames.shape)} and reference {tuple(reference.shape)} differ in size: "
            "compare clips of one size"
        )
    (mean_x, spread_x), (mean_y, spread_y) = _gaussian(frames), _gaussian(reference)
    gap = mean_x - mean_y
    squared = gap @ np.linalg.pinv((spread_x + spread_y) / 2, hermitian=True) @ gap
    return torch.tensor(max(float(squared), 0.0), dtype=torch.float64).sqrt()


def _gaussian(frames: RawFrames) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean ``(36,)`` and the shrunk covariance ``(36, 36)`` of a clip's patches."""
    features = np.concatenate([frame_statistics(frame) for frame in frames])
    count, width = features.shape
    spread = np.cov(features, rowvar=False) if count > 1 else np.zeros((width, width))
    share = width / (width + count)
    floor = 1e-6 * np.eye(width)  # of features that never vary
    return features.mean(0), (1 - share) * spread + share * np.diag(np.diag(spread)) + floor


def frame_statistics(frame: RawFrames) -> np.ndarray:
    """Return the statistics of every patch of a ``(height, width, 3)`` frame.

    Returns:
        float64 ``(patches, 36)``: 18 at full size, then 18 at half size.

    Raises:
        BadInputError: When a side is below 64.
    """
    height, width = frame.shape[:2]
    if min(height, width) < SMALLEST:
        raise BadInputError(
            f"NSS distance needs frames of at least {SMALLEST} x {SMALLEST} pixels, got {height} "
            f"x {width}: compare larger frames, or use PSNR"
        )
    patch = 96 if min(height, width) >= 192 else 32
    rows, columns = height // patch, width // patch
    luma = grey(frame)[: rows * patch, : columns * patch].astype(np.float32)
    half = cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.hstack([_statistics(luma, patch), _statistics(half, patch // 2)])


def _statistics(luma: np.ndarray, patch: int) -> np.ndarray:
    """Return ``(patches, 18)``: the fit of the normalised pixels and of products of neighbours."""
    mean = cv2.GaussianBlur(luma, (7, 7), 7 / 6)
    square = cv2.GaussianBlur(luma * luma, (7, 7), 7 / 6)
    normal = (luma - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
    shape, _, left, right = _fit(_patches(normal, patch))
    columns = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        columns += _fit(_patches(normal * np.roll(normal, shift, axis=(0, 1)), patch))
    return np.stack(columns, axis=1)


def _patches(plane: np.ndarray, patch: int) -> np.ndarray:
    """Cut a plane into ``(patches, pixels)``, float64."""
    rows, columns = plane.shape[0] // patch, plane.shape[1] // patch
    cut = plane.reshape(rows, patch, columns, patch).swapaxes(1, 2)
    return cut.reshape(rows * columns, patch * patch).astype(np.float64)


def _fit(values: np.ndarray) -> list[np.ndarray]:
    """Fit asymmetric generalised Gaussians to ``(patches, pixels)`` by their moments.

    Returns:
        Shape, mean, left and right scale, each ``(patches,)``.
    """
    tiny = 1e-12
    square = np.square(values)
    left = np.sqrt((square * (values < 0)).sum(1) / ((values < 0).sum(1) + tiny))
    right = np.sqrt((square * (values > 0)).sum(1) / ((values > 0).sum(1) + tiny))
    skew = (left + tiny) / (right + tiny)
    ratio = np.square(np.abs(values).mean(1)) / (square.mean(1) + tiny)
    ratio *= (skew**3 + 1) * (skew + 1) / np.square(skew**2 + 1)
    shape = np.interp(ratio, _RATIOS, _SHAPES)
    scale = np.exp((gammaln(1 / shape) - gammaln(3 / shape)) / 2)
    mean = (right - left) * scale * np.exp(gammaln(2 / shape) - gammaln(1 / shape))
    return [shape, mean, left * scale, right * scale]
