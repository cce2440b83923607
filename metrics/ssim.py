"""SSIM of a clip against its reference, the variant of pytorch_msssim and scikit-image (gaussian).

With Gaussian-weighted means ``m``, variances ``v`` and covariance ``c`` of an 11 x 11 window of
sigma 1.5, placed only where it fits whole ("valid"), for each RGB channel on the 0 to 255 scale:

    SSIM = (2 m_x m_y + C1) (2 c + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2))

averaged over positions and channels, with C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2. Other
variants (zero padding, a box window, grey) read up to 0.05 higher: never mix them in a table.
It is computed in float64: on flat bright areas float32 is wrong by more than 1e-4.

Own code and not a library's, which the tests hold it against, for its speed: four frames of
480 x 832 took 1.4 s in float64 on one thread of an AMD EPYC, 15.4 s by pytorch_msssim and 54 s by
torchmetrics, in turns (a convolution in float64 is slow on a CPU; sums of shifted views are not).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.metrics.clips import RawFrames, frame_pairs
from vidsparse.metrics.registry import derived, metric

WINDOW = 11
SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


@metric(
    "ssim",
    label="SSIM",
    better="higher",
    side=WINDOW,
    caveat="Gaussian window of 11, sigma 1.5, inside the frame, mean over RGB: other variants "
    "read up to 0.05 higher.",
)
def ssim(frames: RawFrames, reference: RawFrames) -> Tensor:
    """Return the SSIM of each frame; a frame equal to its reference gives 1.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least 11 pixels high and wide.
        reference: The same shape and dtype.

    Returns:
        float64 ``(frames,)``. Memory beyond the inputs is a few copies of one colour plane.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or a frame is too small.

    Example:
        >>> clip = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
        >>> ssim(clip, clip)
        tensor([1., 1.], dtype=torch.float64)
    """
    scores = [_frame_ssim(ours, theirs) for ours, theirs in frame_pairs(frames, reference)]
    return torch.tensor(scores, dtype=torch.float64)


@derived(
    "ssim_worst_frame",
    of="ssim",
    label="SSIM, worst frame",
    caveat="The frame furthest from dense.",
)
def worst(scores: Tensor) -> Tensor:
    """Return the SSIM of the worst frame."""
    return scores.min()


def _frame_ssim(ours: Tensor, theirs: Tensor) -> float:
    """Return the SSIM of two ``(height, width, 3)`` frames."""
    height, width, _ = ours.shape
    if min(height, width) < WINDOW:
        raise BadInputError(
            f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, got {height} x {width}: "
            "compare larger frames, or use PSNR alone"
        )
    pairs = zip(ours.unbind(-1), theirs.unbind(-1), strict=True)
    return torch.stack([plane_ssim(x.double(), y.double())[0] for x, y in pairs]).mean().item()


def plane_ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean SSIM and the mean of its second factor of float64 ``(height, width)``."""
    mean_x, mean_y, square, product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    squared_means = mean_x**2 + mean_y**2
    mean_product = mean_x * mean_y
    luminance = (2 * mean_product + C1) / (squared_means + C1)
    structure = (2 * (product - mean_product) + C2) / (square - squared_means + C2)
    return (luminance * structure).mean(), structure.mean()


def _blur(planes: Tensor) -> Tensor:
    """Filter ``(planes, height, width)`` with the window; each side shrinks by 10.

    Sums of shifted views: several times faster in float64 on a CPU than a convolution.
    """
    offsets = range(-(WINDOW // 2), WINDOW // 2 + 1)
    weights = [math.exp(-(offset**2) / (2 * SIGMA**2)) for offset in offsets]
    for dim in (1, 2):
        size = planes.shape[dim] - WINDOW + 1
        total = torch.zeros_like(planes.narrow(dim, 0, size))
        for start, weight in enumerate(weights):
            total.add_(planes.narrow(dim, start, size), alpha=weight / sum(weights))
        planes = total
    return planes
