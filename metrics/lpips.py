"""LPIPS of a clip against its reference: distance of deep features, lower is closer.

With features ``f_l`` of AlexNet or VGG16 after five of their layers, each pixel of unit length,
and linear heads ``w_l`` fitted to human judgments (version 0.1 of the ``lpips`` package, which
come with torchmetrics):

    LPIPS = sum over l of mean over pixels of w_l . (f_l(x) - f_l(y))^2

The backbone is a file of the user's, torchvision's ImageNet weights; see
:mod:`vidsparse.metrics.weights`. Values of the two backbones are never comparable, nor with
papers that feed the network 0 to 1 instead of -1 to 1 (Sparse-VideoGen's does). Paper: Zhang et
al., arXiv 1801.03924.
"""

from __future__ import annotations

import itertools
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vidsparse.errors import BadInputError
from vidsparse.metrics.clips import RawFrames, frame_pairs
from vidsparse.metrics.registry import Need, metric
from vidsparse.metrics.weights import load_strictly, read_state

Backbone = Literal["alex", "vgg"]
SMALLEST = 32
# The mean and spread of ImageNet's colours, on the scale from -1 to 1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# A number is a 3 x 3 convolution to so many channels with its ReLU, "M" a pool of 2 x 2 pixels.
_VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
# The layers after which features are read: ReLUs, by their place in torchvision's `features`.
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


class LPIPSNetwork(nn.Module):
    """The backbone and the heads of LPIPS.

    Args:
        backbone: Which network.
        path: Its weights, a state dict of torchvision's with or without the classifier.

    Raises:
        BadInputError: When the file is not these weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, path: Path) -> None:
        super().__init__()
        self.taps = _TAPS[backbone]
        self.features = _alexnet() if backbone == "alex" else _vgg16()
        key = f"lpips_{backbone}"
        state = {
            name.removeprefix("features."): tensor
            for name, tensor in read_state(path, key).items()
            if not name.startswith("classifier.")
        }
        load_strictly(self.features, state, path, key)
        self.heads = nn.ParameterList(_heads(backbone)).requires_grad_(requires_grad=False)
        for name, values in {"shift": _SHIFT, "scale": _SCALE}.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Return the distance ``(batch,)`` of images ``(batch, 3, height, width)`` in [-1, 1]."""
        total = frames.new_zeros(len(frames))
        x, y = ((image - self.shift) / self.scale for image in (frames, reference))
        start = 0
        for tap, head in zip(self.taps, self.heads, strict=True):
            slice_ = self.features[start : tap + 1]
            x, y, start = slice_(x), slice_(y), tap + 1
            gap = (normalize(x, dim=1, eps=1e-10) - normalize(y, dim=1, eps=1e-10)).square()
            total += (gap * head).sum(dim=1).mean(dim=(1, 2))
        return total


@metric(
    "lpips_alex",
    label="LPIPS (AlexNet)",
    better="lower",
    tier="weights",
    side=SMALLEST,
    needs={"network": Need("lpips_alex", partial(LPIPSNetwork, "alex"))},
    caveat="Never comparable with LPIPS of VGG16.",
)
@metric(
    "lpips_vgg",
    label="LPIPS (VGG16)",
    better="lower",
    tier="weights",
    side=SMALLEST,
    needs={"network": Need("lpips_vgg", partial(LPIPSNetwork, "vgg"))},
    caveat="Never comparable with LPIPS of AlexNet.",
)
def lpips(frames: RawFrames, reference: RawFrames, network: LPIPSNetwork) -> Tensor:
    """Return the LPIPS of each frame; a frame equal to its reference gives 0.

    Args:
        frames: uint8 ``(frames, height, width, 3)``, at least 32 pixels high and wide.
        reference: The same shape and dtype.
        network: Where its weights are decides where it is computed, one frame at a time.

    Returns:
        float64 ``(frames,)``.

    Raises:
        BadInputError: When either is not a raw clip, the shapes differ, or a frame is too small.
    """
    device = network.shift.device
    distances = []
    for pair in frame_pairs(frames, reference):
        height, width, _ = pair[0].shape
        if min(height, width) < SMALLEST:
            raise BadInputError(
                f"LPIPS needs frames of at least {SMALLEST} x {SMALLEST} pixels, got {height} x "
                f"{width}: compare larger frames, or use PSNR"
            )
        images = [frame.to(device).movedim(-1, 0)[None] / 127.5 - 1 for frame in pair]
        with torch.inference_mode():
            distances.append(network(*images).item())
    return torch.tensor(distances, dtype=torch.float64)


def _heads(backbone: Backbone) -> list[Tensor]:
    """Return the heads' weights, one ``(channels, 1, 1)`` per layer."""
    folder = resources.files("torchmetrics") / "functional" / "image" / "lpips_models"
    with resources.as_file(folder / f"{backbone}.pth") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"][0] for layer in range(len(_TAPS[backbone]))]


def _alexnet() -> nn.Sequential:
    """Return ``torchvision.models.alexnet().features`` up to its last ReLU, unloaded."""

    def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
        padding = 2 if size > 3 else 1
        return [nn.Conv2d(inputs, outputs, size, stride, padding), nn.ReLU()]

    pool = nn.MaxPool2d(3, 2)
    rest = itertools.chain(*(convolution(a, b, 3) for a, b in [(192, 384), (384, 256), (256, 256)]))
    return nn.Sequential(*convolution(3, 64, 11, 4), pool, *convolution(64, 192, 5), pool, *rest)


def _vgg16() -> nn.Sequential:
    """Return ``torchvision.models.vgg16().features`` up to its last ReLU, unloaded."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in _VGG:
        if isinstance(layer, int):
            layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU()]
            channels = layer
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
