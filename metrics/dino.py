"""DINO's vision transformer, as its authors run it, from a local state dict.

The layers are torch's own. What transformers' ``ViTModel`` does differently, and VBench's numbers
depend on, is here: layer norms with an epsilon of 1e-6, and positions stretched to another size by
a factor a little above the exact one. Paper: Caron et al., arXiv 2104.14294.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vidsparse.metrics.weights import load_strictly, misfit, read_state

_AXES = {"positions": 3, "patches.weight": 4, "layers.0.linear1.weight": 2}
HEAD = 64  # channels of one attention head, in every DINO model

# From the names in the authors' file, and in transformers' folder, to torch's.
_NAMES = (
    (r"^patch_embed\.proj\.", "patches."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patches."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^(pos_embed|embeddings\.position_embeddings)$", "positions"),
    (r"^layernorm\.", "norm."),
    (r"^(blocks|encoder\.layer)\.", "layers."),
    (r"\.attn\.qkv\.", ".self_attn.in_proj_"),
    (r"\.(attn\.proj|attention\.output\.dense)\.", ".self_attn.out_proj."),
    (r"\.(mlp\.fc1|intermediate\.dense)\.", ".linear1."),
    (r"\.(mlp\.fc2|output\.dense)\.", ".linear2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


class DINO(nn.Module):
    """A vision transformer whose size is read off its weights.

    Args:
        path: ``dino_vitbase16_pretrain.pth`` or another of DINO's, or a transformers folder.

    Attributes:
        width: Channels of a feature.
        patch: Pixels of a patch's side.
        depth: Number of layers.

    Raises:
        BadInputError: When the path holds no DINO weights.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        state = _rename(read_state(path, "dino"))
        if missing := sorted(name for name in _AXES if name not in state):
            raise misfit(path, "dino", f"it has no {', '.join(missing)}")
        if flat := sorted(name for name, axes in _AXES.items() if state[name].ndim != axes):
            raise misfit(path, "dino", f"{flat[0]} has {state[flat[0]].ndim} axes")
        self.width = state["positions"].shape[-1]
        self.patch = state["patches.weight"].shape[-1]
        self.depth = sum(name.endswith("linear1.weight") for name in state)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.positions = nn.Parameter(torch.empty_like(state["positions"]))
        self.patches = nn.Conv2d(3, self.width, self.patch, self.patch)
        self.layers = nn.ModuleList(_layer(self.width) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        load_strictly(self, state, path, "dino")

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(batch, width)`` of normalised ``(batch, 3, height, width)`` images."""
        grid = self.patches(images)
        tokens = grid.flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(*grid.shape[-2:])
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens[:, 0])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the positions for a grid of patches, ``(1, 1 + rows * columns, width)``."""
        side = math.isqrt(self.positions.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.positions
        first, rest = self.positions[:, :1], self.positions[:, 1:]
        square = rest.mT.reshape(1, self.width, side, side)
        factors = [(rows + 0.1) / side, (columns + 0.1) / side]
        stretched = interpolate(square, scale_factor=factors, mode="bicubic")
        return torch.cat([first, stretched.flatten(2).mT], dim=1)


def _layer(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        d_model=width,
        nhead=max(1, width // HEAD),
        dim_feedforward=4 * width,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of either format torch's names; the pooler, which DINO has not, is left."""
    renamed, parts = {}, {}
    for name, tensor in state.items():
        if name.startswith("pooler."):
            continue
        part = re.search(r"\.attention\.attention\.(query|key|value)\.", name)
        if part:
            joined = name.replace(part[0], ".attn.qkv.")
            parts.setdefault(joined, {})[part[1]] = tensor
        else:
            renamed[_renamed(name)] = tensor
    for name, three in parts.items():
        if three.keys() >= {"query", "key", "value"}:
            renamed[_renamed(name)] = torch.cat([three[p] for p in ("query", "key", "value")])
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
