"""All scores of one clip against its dense run, by metric id (``vidsparse.metrics.catalogue``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.metrics.catalogue import ALL, AS_ASKED, DENSE
from vidsparse.metrics.clips import RawFrames, check_pair, finite_mean
from vidsparse.metrics.judge import Judge, as_asked
from vidsparse.metrics.registry import Metric
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
        self._judge, self._fps = Judge(judge) if judge else None, fps
        self._given = {
            metric_id: _load(metric, weights or Weights(), device)
            for metric_id, metric in ALL.items()
            if metric.info.tier != "judge" and _has_weights(metric, weights)
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
        measured = self._measure(frames, reference)
        values: dict[str, Tensor] = {}
        for metric_id, found in measured.items():
            metric = ALL[metric_id]
            values[metric_id] = finite_mean(metric.value(found))
            values |= {name: each.function(found) for name, each in metric.derived.items()}
            if metric.alone or metric.info.better == "closer to dense":
                own = (reference,) if metric.alone else (reference, reference)
                values[metric_id + DENSE] = finite_mean(metric.value(self._call(metric_id, *own)))
        if asked:
            for name, clip in ((AS_ASKED, frames), (AS_ASKED + DENSE, reference)):
                values[name] = as_asked(clip, asked, self._able_judge(asked))
        curves = {
            name: _curve(ALL[name].value(found), len(frames)) for name, found in measured.items()
        }
        return ClipScores(
            values={metric: _plain(value.item()) for metric, value in values.items()},
            curves={metric: curve for metric, curve in curves.items() if curve},
            identical_frames=int((measured["psnr"] == 0).sum()),
        )

    def _measure(self, frames: RawFrames, reference: RawFrames) -> dict[str, Tensor]:
        """What every metric gives that takes a clip of this size and length, ``(count,)`` each."""
        check_pair(frames, reference)
        side, count = min(frames.shape[1:3]), len(frames)
        found: dict[str, Tensor] = {}
        for metric_id in self._given:
            metric = ALL[metric_id]
            if metric.fits(count, side, self._fps):
                clips = (frames,) if metric.alone else (frames, reference)
                result = self._call(metric_id, *clips)
                if not result.isnan().all():
                    found[metric_id] = result
        return found

    def _call(self, metric_id: str, *clips: RawFrames) -> Tensor:
        metric = ALL[metric_id]
        fps = {"fps": self._fps} if metric.takes_fps else {}
        return metric.measure(*clips, **self._given[metric_id], **fps).reshape(-1)

    def _able_judge(self, asked: Mapping[str, str]) -> Judge:
        if self._judge is None:
            raise BadInputError(
                f"nobody can say whether a clip shows {', '.join(asked.values())}: give the scorer "
                "a judge"
            )
        return self._judge


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


def _has_weights(metric: Metric, weights: Weights | None) -> bool:
    return all(weights and getattr(weights, need.key) for need in metric.needs.values())


def _load(metric: Metric, weights: Weights, device: str) -> dict[str, Any]:
    """The networks of a metric, by the parameter that takes them."""
    return {
        name: need.load(getattr(weights, need.key)).to(device)
        for name, need in metric.needs.items()
    }


def _curve(values: Tensor, frames: int) -> Curve:
    """Return values of frames, or of changes to them, as one entry per frame; else nothing."""
    if len(values) not in (frames, frames - 1) or len(values) == 1 < frames:
        return []
    return [None] * (frames - len(values)) + [_plain(value) for value in values.tolist()]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
