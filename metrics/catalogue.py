"""What each metric is: label, unit, direction, and what its number can and cannot say.

Four tiers. "exact": equal to its published definition, on nothing but the frames. "weights": that
too, with networks from local files. "stand-in": cheap and without weights, in the place of a metric
that needs them; never call it by that metric's name, and never mix it into a total. "judge": by the
classifier that ships with the tiny pipeline, of its clips alone.

An id followed by ``@dense`` is the dense run's own value of a metric of one clip, which a metric
"closer to dense" is read against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vidsparse.errors import BadInputError

Better = Literal["higher", "lower", "closer to dense"]
Tier = Literal["exact", "weights", "stand-in", "judge"]
DENSE = "@dense"
AS_ASKED = "judge/as_asked"


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """Facts about one metric.

    Attributes:
        id: Its key in results.
        label: For tables and axes.
        unit: "" for a plain number.
        better: Which direction is better.
        tier: How far the number can be trusted, see above.
        stands_in_for: For a stand-in, the id or name of what it replaces.
        caveat: One sentence to print beside it.
    """

    id: str
    label: str
    unit: str
    better: Better
    tier: Tier
    stands_in_for: str | None
    caveat: str


def info(metric_id: str) -> MetricInfo:
    """Return the facts of a metric, also under its ``@dense`` id.

    Raises:
        BadInputError: When there is no such metric.
    """
    try:
        return METRICS[metric_id.removesuffix(DENSE)]
    except KeyError:
        raise BadInputError(
            f"there is no metric {metric_id!r}: choose from {', '.join(METRICS)}"
        ) from None


def _fidelity(metric_id: str, label: str, unit: str, caveat: str) -> MetricInfo:
    better = "lower" if metric_id.startswith("lpips") else "higher"
    tier = "weights" if metric_id.startswith("lpips") else "exact"
    return MetricInfo(metric_id, label, unit, better, tier, None, caveat)


def _alone(metric_id: str, label: str, tier: Tier, caveat: str, unit: str = "") -> MetricInfo:
    return MetricInfo(metric_id, label, unit, "closer to dense", tier, None, caveat)


def _stand_in(
    name: str, label: str, unit: str, better: Better, replaces: str, caveat: str
) -> MetricInfo:
    return MetricInfo(f"proxy/{name}", label, unit, better, "stand-in", replaces, caveat)


_ALL = [
    _fidelity(
        "psnr",
        "PSNR",
        "dB",
        "Sameness with the dense clip, not quality: a harmless shift of one pixel lowers it. Mean "
        "over frames; identical frames are left out and counted.",
    ),
    _fidelity(
        "psnr_pooled",
        "PSNR, pooled",
        "dB",
        "Of the error pooled over all frames: never above the mean over frames.",
    ),
    _fidelity("psnr_worst_frame", "PSNR, worst frame", "dB", "The frame furthest from dense."),
    _fidelity(
        "ssim",
        "SSIM",
        "",
        "Gaussian window of 11, sigma 1.5, inside the frame, mean over RGB: other variants read up "
        "to 0.05 higher.",
    ),
    _fidelity("ssim_worst_frame", "SSIM, worst frame", "", "The frame furthest from dense."),
    _fidelity(
        "ms_ssim",
        "MS-SSIM",
        "",
        "Five scales, as pytorch_msssim; needs frames of at least 161 x 161 pixels.",
    ),
    _fidelity(
        "temporal_psnr",
        "Temporal PSNR",
        "dB",
        "PSNR of the changes from frame to frame: errors that stay in place do not count, those "
        "that come and go count twice.",
    ),
    _fidelity("lpips_alex", "LPIPS (AlexNet)", "", "Never comparable with LPIPS of VGG16."),
    _fidelity("lpips_vgg", "LPIPS (VGG16)", "", "Never comparable with LPIPS of AlexNet."),
    _alone(
        "vbench/temporal_flickering",
        "Temporal flickering",
        "exact",
        "VBench's formula, which VBench applies to static videos only: motion lowers it, blurred "
        "and frozen frames raise it.",
    ),
    _alone(
        "vbench/subject_consistency",
        "Subject consistency",
        "weights",
        "VBench's formula with DINO ViT-B/16: frozen frames score 1.",
    ),
    _alone(
        "vbench/background_consistency",
        "Background consistency",
        "weights",
        "VBench's formula with CLIP ViT-B/32 in float32: frozen frames score 1.",
    ),
    MetricInfo(
        "vbench/aesthetic_quality",
        "Aesthetic quality",
        "",
        "higher",
        "weights",
        None,
        "VBench's formula with CLIP ViT-L/14 and LAION's linear head: taste, not fidelity.",
    ),
    MetricInfo(
        AS_ASKED,
        "As asked",
        "",
        "higher",
        "judge",
        None,
        "The share of what the prompt says of shape, colour, motion, background and number of "
        "sprites that a small classifier recognises. On renders it is right in 98 to 100 % of the "
        "clips, about a background's scrolling or zooming in 94 %: read it beside the dense run's. "
        "It knows the subjects and the language of the shipped model, and nothing else.",
    ),
    _stand_in(
        "motion_smoothness",
        "Smoothness (DIS)",
        "",
        "closer to dense",
        "vbench/motion_smoothness",
        "Frames interpolated along DIS flow instead of by AMT-S: blurred and frozen frames raise "
        "it.",
    ),
    _stand_in(
        "dynamic_degree",
        "Dynamics (DIS)",
        "x threshold",
        "closer to dense",
        "vbench/dynamic_degree",
        "DIS flow instead of RAFT, and how far above VBench's threshold instead of whether: above "
        "1 means dynamic.",
    ),
    _stand_in(
        "flow_difference",
        "Flow difference (DIS)",
        "px",
        "lower",
        "tOF",
        "Sees lost or added motion, hardly a blur; DIS flow, so not comparable with published tOF.",
    ),
    _stand_in(
        "warp_error",
        "Warp error (DIS)",
        "10^-3",
        "closer to dense",
        "E_warp",
        "Along the dense clip's DIS flow: sees flicker, noise and lost motion; a blur lowers it.",
    ),
    _stand_in(
        "nss_distance",
        "Texture distance (NSS)",
        "",
        "lower",
        "vbench/imaging_quality",
        "NIQE's statistics with the dense clip in the place of pristine photographs: says other "
        "texture than dense, never worse picture. Comparable at one size and length only.",
    ),
]

METRICS: dict[str, MetricInfo] = {metric.id: metric for metric in _ALL}
