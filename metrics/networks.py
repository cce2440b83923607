"""The image networks of VBench's learned dimensions, each checked to be the one VBench uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidsparse.metrics.dino import DINO
from vidsparse.metrics.weights import load_strictly, misfit, read_state


def dino_b16(path: Path) -> DINO:
    """Load the network of VBench's subject consistency, and refuse its smaller relatives.

    Raises:
        BadInputError: When the path is not DINO ViT-B/16.
    """
    network = DINO(path)
    if (network.width, network.patch, network.depth) != (768, 16, 12):
        found = f"{network.depth} layers of {network.width}, patches of {network.patch}"
        raise misfit(path, "dino", f"it has {found}")
    return network


def clip_b32(path: Path) -> CLIPImages:
    """Load the network of VBench's background consistency.

    Raises:
        BadInputError: When the path is not CLIP ViT-B/32.
    """
    return _clip(path, "clip_b32", width=768, patch=32)


def clip_l14(path: Path) -> CLIPImages:
    """Load the network of VBench's aesthetic quality.

    Raises:
        BadInputError: When the path is not CLIP ViT-L/14.
    """
    return _clip(path, "clip_l14", width=1024, patch=14)


def aesthetic_head(path: Path, channels: int = 768) -> nn.Linear:
    """Load LAION's linear head.

    Raises:
        BadInputError: When the path is not that head.
    """
    head = nn.Linear(channels, 1)
    load_strictly(head, read_state(path, "aesthetic_head"), path, "aesthetic_head")
    return head


class CLIPImages(nn.Module):
    """The image half of a CLIP model.

    Args:
        path: A transformers folder.
        key: The field of ``Weights`` it was given for.

    Raises:
        BadInputError: When the folder holds no such model.
    """

    def __init__(self, path: Path, key: str) -> None:
        from transformers import CLIPVisionModelWithProjection

        super().__init__()
        try:
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                path, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # of a config that may say anything
            raise misfit(path, key, " ".join(str(error).split())[:200]) from error
        self.model, report = loaded
        if report["missing_keys"]:
            raise misfit(path, key, f"it has no {min(report['missing_keys'])}")
        self.model.eval().requires_grad_(requires_grad=False)
        config = self.model.config
        self.size, self.patch, self.width = (
            config.image_size,
            config.patch_size,
            config.hidden_size,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(batch, channels)`` of ``(batch, 3, size, size)`` images."""
        return self.model(pixel_values=images).image_embeds


def _clip(path: Path, key: str, *, width: int, patch: int) -> CLIPImages:
    network = CLIPImages(path, key)
    if (network.width, network.patch) != (width, patch):
        raise misfit(path, key, f"it is {network.width} wide with patches of {network.patch}")
    return network
