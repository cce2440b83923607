"""The sprites' outlines as signed distances: negative inside, zero on the edge, 1 unit ~ a radius.

Formulas after Inigo Quilez, https://iquilezles.org/articles/distfunctions2d; y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y + 1e-8)


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return _length(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    """Corners rounded by 0.14."""
    x, y = x.abs() - 0.72, y.abs() - 0.72
    return _length(x.clamp(min=0), y.clamp(min=0)) + torch.maximum(x, y).clamp(max=0) - 0.14


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(y - 0.62, math.sqrt(3) / 2 * x.abs() - 0.5 * y - 0.50)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points of radius 1.12, corners between them at 0.52: folded onto one edge."""
    fifth = 2 * math.pi / 5
    turns = torch.atan2(x, -y) / fifth
    angle = (turns - torch.round(turns)) * fifth
    r = _length(x, y)
    x, y = r * torch.sin(angle.abs()), r * torch.cos(angle)
    edge_x, edge_y = 0.52 * math.sin(fifth / 2), 0.52 * math.cos(fifth / 2) - 1.12
    return (-x * edge_y + (y - 1.12) * edge_x) / math.hypot(edge_x, edge_y)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (_length(x, y) - 0.74).abs() - 0.26


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Tip at the bottom."""
    size = 0.60
    x, y = x.abs() * size, -y * size + 0.52
    lobe = _length(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = 0.5 * (x + y).clamp(min=0)
    squared = torch.minimum(x * x + (y - 1) ** 2, (x - along) ** 2 + (y - along) ** 2)
    side = torch.sqrt(squared + 1e-8) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, side) / size


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.34), torch.maximum(x - 0.34, y - 0.95))


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_length(x, y) - 1.0, 0.80 - _length(x - 0.52, y + 0.18))


# In the order of tiny_prompts.SHAPES.
OUTLINES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _circle,
    _square,
    _triangle,
    _star,
    _ring,
    _heart,
    _cross,
    _moon,
)
