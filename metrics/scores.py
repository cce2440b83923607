"""All scores of one clip against its dense run, by metric id (``vidsparse.metrics.catalogue``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.metrics import learned, lpips, ms_ssim, natural, networks, ssim
from vidsparse.metrics.catalogue import AS_ASKED, DENSE
from vidsparse.metrics.flicker import temporal_flickering
from vidsparse.metrics.flow import SMALLEST as SMALLEST_FLOW
from vidsparse.metrics.judge import Judge
from vidsparse.metrics.motion import dynamic_degree, motion_smoothness
from vidsparse.metrics.psnr import RawFrames, decibels, finite_mean, squared_error
from vidsparse.metrics.temporal import temporal_psnr
from vidsparse.metrics.warp import flow_difference, warp_error
from vidsparse.metrics.weights import Weights

Curve = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """The scores of one clip, ready for JSON.

    Attributes:
        values: By metric id; None where infinite, since the clip equals its reference. An id that
            is not there was not measured: no weights, or frames too small or too few.
        curves: Per frame where a metric has such values; None where infinite or undefined, as on
            the first frame of what is measured between frames.
        identical_frames: How many frames equal the reference's in every pixel.
    """

    values: dict[str, float | None]
    curves: dict[str, Curve]
    identical_frames: int


@dataclass(frozen=True, slots=True)
class _Measure:
    """A function of a clip and its reference, and the least clip it takes."""

    function: Callable[[RawFrames, RawFrames], Tensor]
    side: int = 1
    frames: int = 1


@dataclass(frozen=True, slots=True)
class _Alone:
    """A function of one clip, also measured on the reference, and the least clip it takes."""

    function: Callable[[RawFrames], Tensor]
    side: int = 1
    frames: int = 1


class Scorer:
    """Scores clips, one at a time, with networks that are loaded once.

    Args:
        weights: Local files of networks; without one its metrics are not measured.
        fps: Frames per second of the clips, which only dynamic degree depends on.
        device: Where the networks compute.
        judge: The file of the judge, for clips of the pipeline that ships.

    Raises:
        BadInputError: When a file of ``weights`` is not what its field needs, or no judge.
    """

    def __init__(
        self,
        weights: Weights | None = None,
        *,
        fps: float = 16.0,
        device: str = "cpu",
        judge: Path | None = None,
    ) -> None:
        self._judge = Judge(judge) if judge else None
        self._measures: dict[str, _Measure | _Alone] = {
            "ssim": _Measure(ssim.ssim, ssim.WINDOW),
            "ms_ssim": _Measure(ms_ssim.ms_ssim, ms_ssim.SMALLEST),
            "temporal_psnr": _Measure(temporal_psnr, frames=2),
            "vbench/temporal_flickering": _Alone(temporal_flickering, frames=2),
            "proxy/motion_smoothness": _Alone(motion_smoothness, SMALLEST_FLOW, 3),
            "proxy/dynamic_degree": _Alone(
                lambda clip: dynamic_degree(clip, fps)[None],
                SMALLEST_FLOW,
                max(1, round(fps / 8)) + 1,
            ),
            "proxy/flow_difference": _Measure(flow_difference, SMALLEST_FLOW, 2),
            "proxy/warp_error": _Measure(warp_error, SMALLEST_FLOW, 2),
            "proxy/nss_distance": _Measure(
                lambda ours, theirs: natural.nss_distance(ours, theirs)[None], natural.SMALLEST
            ),
            **_with_weights(weights or Weights(), device),
        }

    def score(
        self, frames: RawFrames, reference: RawFrames, *, asked: Mapping[str, str] | None = None
    ) -> ClipScores:
        """Score one clip.

        Args:
            frames: uint8 ``(frames, height, width, 3)``.
            reference: The dense run's, the same shape and dtype.
            asked: What the judge is to look for, such as ``{"shape": "circle"}``; None if nothing.

        Raises:
            BadInputError: When either is not a raw clip, the shapes differ, or nobody can judge.
        """
        mse = squared_error(frames, reference)
        psnr = decibels(mse)
        values = {
            "psnr": finite_mean(psnr),
            "psnr_pooled": decibels(mse.mean()),
            "psnr_worst_frame": psnr.min(),
        }
        found = {"psnr": psnr}
        side, count = min(frames.shape[1:3]), len(frames)
        for metric, measure in self._measures.items():
            if side < measure.side or count < measure.frames:
                continue
            alone = isinstance(measure, _Alone)
            result = measure.function(frames) if alone else measure.function(frames, reference)
            if result.isnan().all():
                continue
            found[metric], values[metric] = result, finite_mean(result)
            if alone:
                values[metric + DENSE] = finite_mean(measure.function(reference))
        if "ssim" in found:
            values["ssim_worst_frame"] = found["ssim"].min()
        if "proxy/warp_error" in found:
            values["proxy/warp_error" + DENSE] = finite_mean(warp_error(reference, reference))
        if asked:
            for name, clip in ((AS_ASKED, frames), (AS_ASKED + DENSE, reference)):
                values[name] = torch.tensor(self._judged(clip, asked), dtype=torch.float64)
        per_frame = {metric: _curve(each, count) for metric, each in found.items()}
        return ClipScores(
            values={metric: _plain(value.item()) for metric, value in values.items()},
            curves={metric: curve for metric, curve in per_frame.items() if curve},
            identical_frames=int((mse == 0).sum()),
        )

    def _judged(self, clip: RawFrames, asked: Mapping[str, str]) -> float:
        if self._judge is None:
            raise BadInputError(
                f"nobody can say whether a clip shows {', '.join(asked.values())}: give the scorer "
                "a judge"
            )
        return self._judge.score(clip, asked)


def score_clip(
    frames: RawFrames, reference: RawFrames, *, weights: Weights | None = None, fps: float = 16.0
) -> ClipScores:
    """Score one clip; for several, a :class:`Scorer` loads the networks once.

    Args:
        frames: uint8 ``(frames, height, width, 3)``.
        reference: The dense run's, the same shape and dtype.
        weights: Local files of networks.
        fps: Frames per second.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or a file does not fit.

    Example:
        >>> import numpy as np
        >>> clip = np.zeros((2, 16, 16, 3), np.uint8)
        >>> result = score_clip(clip, clip)
        >>> result.values["psnr"], result.identical_frames
        (None, 2)
    """
    return Scorer(weights, fps=fps).score(frames, reference)


def _with_weights(weights: Weights, device: str) -> dict[str, _Measure | _Alone]:
    measures: dict[str, _Measure | _Alone] = {}
    backbones: dict[lpips.Backbone, Path | None] = {
        "alex": weights.lpips_alex,
        "vgg": weights.lpips_vgg,
    }
    for backbone, path in backbones.items():
        if path:
            network = lpips.LPIPSNetwork(backbone, path).to(device)
            measure = _Measure(partial(lpips.lpips, network=network), lpips.SMALLEST)
            measures[f"lpips_{backbone}"] = measure
    if weights.dino:
        subject = partial(
            learned.subject_consistency, network=networks.dino_b16(weights.dino).to(device)
        )
        measures["vbench/subject_consistency"] = _Alone(subject, frames=2)
    if weights.clip_b32:
        background = partial(
            learned.background_consistency, network=networks.clip_b32(weights.clip_b32).to(device)
        )
        measures["vbench/background_consistency"] = _Alone(background, frames=2)
    if weights.clip_l14 and weights.aesthetic_head:
        quality = partial(
            learned.aesthetic_quality,
            network=networks.clip_l14(weights.clip_l14).to(device),
            head=networks.aesthetic_head(weights.aesthetic_head).to(device),
        )
        measures["vbench/aesthetic_quality"] = _Alone(quality)
    return measures


def _curve(values: Tensor, frames: int) -> Curve:
    """Return values of frames, or of changes to them, as one entry per frame; else nothing."""
    if len(values) not in (frames, frames - 1) or len(values) == 1 < frames:
        return []
    return [None] * (frames - len(values)) + [_plain(value) for value in values.tolist()]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
