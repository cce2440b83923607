"""How close one clip is to its reference (as a rule, the dense run of the same seed)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vidsparse.metrics.clips import RawFrames, finite_mean
from vidsparse.metrics.psnr import decibels, squared_error
from vidsparse.metrics.ssim import ssim


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """PSNR and SSIM of one clip, as plain numbers.

    Attributes:
        psnr: Mean over frames of per-frame PSNR in dB. Frames equal to their reference are left
            out and counted in ``identical_frames``; infinite when all are.
        psnr_pooled: PSNR of the error pooled over all frames, identical ones included.
        psnr_worst_frame: PSNR of the worst frame.
        ssim: Mean over frames of per-frame SSIM (Gaussian 11, sigma 1.5, valid, RGB).
        ssim_worst_frame: SSIM of the worst frame.
        identical_frames: How many frames equal their reference in every pixel.
        frame_mse: Mean squared error of each frame, on the 0 to 255 scale.
        frame_psnr: PSNR of each frame, ``inf`` where identical.
        frame_ssim: SSIM of each frame.
    """

    psnr: float
    psnr_pooled: float
    psnr_worst_frame: float
    ssim: float
    ssim_worst_frame: float
    identical_frames: int
    frame_mse: tuple[float, ...]
    frame_psnr: tuple[float, ...]
    frame_ssim: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; what is infinite becomes ``None``, since JSON has no inf."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def fidelity(frames: RawFrames, reference: RawFrames) -> Fidelity:
    """Compare one clip with its reference.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least 11 pixels high and wide.
        reference: The same shape and dtype.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or a frame is too small.

    Example:
        >>> import numpy as np
        >>> clip = np.zeros((2, 16, 16, 3), np.uint8)
        >>> fidelity(clip, clip).to_json()["psnr"] is None
        True
    """
    mse = squared_error(frames, reference)
    frame_psnr, frame_ssim = decibels(mse), ssim(frames, reference)
    return Fidelity(
        psnr=finite_mean(frame_psnr).item(),
        psnr_pooled=decibels(mse.mean()).item(),
        psnr_worst_frame=frame_psnr.min().item(),
        ssim=frame_ssim.mean().item(),
        ssim_worst_frame=frame_ssim.min().item(),
        identical_frames=int((mse == 0).sum()),
        frame_mse=tuple(mse.tolist()),
        frame_psnr=tuple(frame_psnr.tolist()),
        frame_ssim=tuple(frame_ssim.tolist()),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if value == math.inf else value
