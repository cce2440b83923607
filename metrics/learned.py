"""VBench's learned dimensions that need no more than an image network, through the real ones.

Subject consistency (DINO ViT-B/16) and background consistency (CLIP ViT-B/32) compare each frame
with the one before and with the first, by the cosine of their features:

    consistency_t = (max(0, cos(f_t, f_(t-1))) + max(0, cos(f_t, f_0))) / 2

Aesthetic quality is LAION's linear head on CLIP ViT-L/14 features, over 10. All in float32 (on a
GPU VBench runs CLIP in float16), frames resized as VBench 0.1.5 does, without antialiasing. Frozen
frames are perfectly consistent: read these as a distance from the dense run's own value. The
other dimensions are VBench's own to run: see :mod:`vidsparse.metrics.vbench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, normalize

from vidsparse.metrics import networks
from vidsparse.metrics.clips import RawFrames, as_tensor, check_length
from vidsparse.metrics.dino import DINO
from vidsparse.metrics.networks import CLIPImages
from vidsparse.metrics.registry import Need, metric

CHUNK = 8  # frames that a network sees at once
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@metric(
    "vbench/subject_consistency",
    label="Subject consistency",
    better="closer to dense",
    tier="weights",
    alone=True,
    frames=2,
    needs={"network": Need("dino", lambda path: networks.dino_b16(path))},
    caveat="VBench's formula with DINO ViT-B/16: frozen frames score 1.",
)
def subject_consistency(frames: RawFrames, network: DINO) -> Tensor:
    """Return the consistency of each frame but the first, float64 ``(frames - 1,)``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames.
        network: Where its weights are decides where it is computed, eight frames at a time.

    Raises:
        BadInputError: When it is not a raw clip, or has one frame.
    """
    check_length(frames, 2, "subject consistency")

    def prepare(images: Tensor) -> Tensor:
        return _normal(_resize(images, 224, "bilinear"), _IMAGENET)

    return _consistency(_features(frames, network, prepare))


@metric(
    "vbench/background_consistency",
    label="Background consistency",
    better="closer to dense",
    tier="weights",
    alone=True,
    frames=2,
    needs={"network": Need("clip_b32", lambda path: networks.clip_b32(path))},
    caveat="VBench's formula with CLIP ViT-B/32 in float32: frozen frames score 1.",
)
def background_consistency(frames: RawFrames, network: CLIPImages) -> Tensor:
    """Return the consistency of each frame but the first, float64 ``(frames - 1,)``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least two frames.
        network: As in :func:`subject_consistency`.

    Raises:
        BadInputError: When it is not a raw clip, or has one frame.
    """
    check_length(frames, 2, "background consistency")
    return _consistency(_features(frames, network, _for_clip(network)))


@metric(
    "vbench/aesthetic_quality",
    label="Aesthetic quality",
    better="higher",
    tier="weights",
    alone=True,
    needs={
        "network": Need("clip_l14", lambda path: networks.clip_l14(path)),
        "head": Need("aesthetic_head", lambda path: networks.aesthetic_head(path)),
    },
    caveat="VBench's formula with CLIP ViT-L/14 and LAION's linear head: taste, not fidelity.",
)
def aesthetic_quality(frames: RawFrames, network: CLIPImages, head: nn.Linear) -> Tensor:
    """Return the aesthetic quality of each frame, about 0 to 1, float64 ``(frames,)``.

    Args:
        frames: uint8 ``(frames, height, width, 3)``.
        network: As in :func:`subject_consistency`.
        head: From its features to a score of 1 to 10.

    Raises:
        BadInputError: When it is not a raw clip.
    """
    check_length(frames, 1, "aesthetic quality")
    features = normalize(_features(frames, network, _for_clip(network)), dim=-1)
    with torch.inference_mode():
        return head(features)[:, 0].double() / 10


def _consistency(features: Tensor) -> Tensor:
    now, then, first = features[1:], features[:-1], features[:1]
    likeness = [cosine_similarity(now, other).clamp(min=0) for other in (then, first)]
    return (likeness[0] + likeness[1]).double() / 2


def _features(frames: RawFrames, network: nn.Module, prepare: Callable) -> Tensor:
    """Return the features ``(frames, channels)`` of a clip, computed a few frames at a time."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        found = [network(prepare(images.to(device))) for images in _chunks(frames)]
    return torch.cat(found)


def _chunks(frames: RawFrames) -> Iterator[Tensor]:
    """Yield a clip as float32 ``(some, 3, height, width)`` on the 0 to 255 scale."""
    for start in range(0, len(frames), CHUNK):
        some = as_tensor(frames[start : start + CHUNK])
        yield some.movedim(-1, 1).float()


def _for_clip(network: CLIPImages) -> Callable[[Tensor], Tensor]:
    def prepare(images: Tensor) -> Tensor:
        images = _resize(images, network.size, "bicubic")
        height, width = images.shape[-2:]
        top, left = round((height - network.size) / 2), round((width - network.size) / 2)
        crop = images[..., top : top + network.size, left : left + network.size]
        return _normal(crop, _CLIP)

    return prepare


def _resize(images: Tensor, short: int, mode: str) -> Tensor:
    """Scale the shorter side to ``short``, without antialiasing."""
    height, width = images.shape[-2:]
    shape = [int(short * side / min(height, width)) for side in (height, width)]
    return interpolate(images, size=shape, mode=mode, align_corners=False)


def _normal(images: Tensor, colours: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, spread = (images.new_tensor(values).view(3, 1, 1) for values in colours)
    return (images / 255 - mean) / spread
