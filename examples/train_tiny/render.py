"""Scenes to pixels, a batch at a time on any device, every edge anti-aliased.

Surfaces may carry a faint texture of their own that moves, turns and grows with them, as real ones
do: what a clip shows at one place is then to be found again along its path, not made up anew.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import NAMES, SPRITES, TEXTURES, Numbers, Scenes
from .shapes import OUTLINES

Surface = dict[str, Tensor]  # numbers of some clips, (clips, 1, 1, 1) or (clips, 3, 1, 1, 1)
_SHADOW = (0.055, 0.075)  # to the right and below: one light for all


@dataclass(frozen=True)
class Grid:
    """Where the pixels of each clip lie, and when its frames are.

    Attributes:
        x: ``(batch, 1, 1, width)``.
        y: ``(batch, 1, height, 1)``.
        time: ``(1, frames, 1, 1)`` over [0, 1].
        pixel: Width of a pixel, ``(batch, 1, 1, 1)``.
    """

    x: Tensor
    y: Tensor
    time: Tensor
    pixel: Tensor

    def of(self, clips: Tensor) -> Grid:
        return Grid(self.x[clips], self.y[clips], self.time, self.pixel[clips])


@dataclass(frozen=True)
class Rendered:
    """Clips in [-1, 1], ``(batch, 3, frames, height, width)``, and how much of a pixel is sprite.

    ``coverage`` is ``(batch, frames, height, width)`` in [0, 1].
    """

    clips: Tensor
    coverage: Tensor


def full_grid(batch: int, frames: int, height: int, width: int, device: str) -> Grid:
    """Return the grid of whole frames."""
    side = torch.full((batch,), float(min(height, width)))
    return window_grid(frames, height, width, side, (height - side) / 2, (width - side) / 2, device)


def window_grid(
    frames: int, height: int, width: int, side: Tensor, top: Tensor, left: Tensor, device: str
) -> Grid:
    """Return the grid of a window of each clip's frame.

    Args:
        frames: How many.
        height: Of the window, in pixels.
        width: Of the window, in pixels.
        side: The frame's shorter side in pixels, ``(batch,)``.
        top: Pixels of the window above the frame's middle square, ``(batch,)``; negative below.
        left: Pixels to the left of it.
        device: Where it will be rendered.
    """
    pixel = (2 / side.to(device))[:, None, None, None]
    rows = torch.arange(height, device=device).float()[None, None, :, None] + 0.5
    columns = torch.arange(width, device=device).float()[None, None, None, :] + 0.5
    y = (rows - top.to(device)[:, None, None, None]) * pixel - 1
    x = (columns - left.to(device)[:, None, None, None]) * pixel - 1
    time = torch.arange(frames, device=device).float() / max(frames - 1, 1)
    return Grid(x, y, time[None, :, None, None], pixel)


@torch.no_grad()
def render(scenes: Scenes, grid: Grid) -> Rendered:
    """Render each scene on its part of the grid, clips of one pattern or shape together."""
    device = grid.x.device
    sprites, ground, view = (_on(device, n) for n in (scenes.sprites, scenes.ground, scenes.view))
    batch, frames = len(scenes), grid.time.shape[1]
    shape = (frames, grid.y.shape[2], grid.x.shape[3])
    clips = torch.empty(batch, 3, *shape, device=device)
    coverage = torch.zeros(batch, *shape, device=device)
    for pattern in range(len(NAMES["pattern"])):
        if (some := _where(scenes.labels["pattern"] == pattern, device)) is not None:
            surface = _surface(ground | view, some)
            clips[some] = _background(surface, grid.of(some), pattern)
    for k in range(SPRITES):
        for which in range(len(OUTLINES)):
            drawn = (scenes.labels["sprites"] > k) & (scenes.labels["shape"][:, k] == which)
            if (some := _where(drawn, device)) is not None:
                surface = _surface({n: v[:, k] for n, v in sprites.items()} | view, some)
                over, cover = _draw_sprite(clips[some], surface, grid.of(some), which)
                clips[some], coverage[some] = over, torch.maximum(coverage[some], cover)
    return Rendered(clips.clamp_(0, 1).mul_(2).sub_(1), coverage)


def _where(which: np.ndarray, device: torch.device) -> Tensor | None:
    found = np.flatnonzero(which)
    return torch.from_numpy(found).to(device) if len(found) else None


def _on(device: torch.device, numbers: Numbers) -> Surface:
    return {name: torch.from_numpy(v).to(device) for name, v in numbers.items()}


def _surface(numbers: Surface, some: Tensor) -> Surface:
    """Return the numbers of some clips, to be broadcast; colours keep their axis."""

    def placed(name: str, values: Tensor) -> Tensor:
        if values.ndim == 1:
            return values[:, None, None, None]
        if name.startswith("rgb"):
            return values[:, :, None, None, None]
        return values.T[:, :, None, None, None]  # the axis of its own comes first

    return {name: placed(name, values[some]) for name, values in numbers.items()}


def _seen(surface: Surface, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a moving camera looks, and how wide a pixel is there."""
    zoom = torch.exp(surface["view_zoom"] * (grid.time - 0.5))
    x = grid.x * zoom + surface["view_x"] * grid.time * 1.4
    y = grid.y * zoom + surface["view_y"] * grid.time * 1.4
    return x, y, grid.pixel * zoom


def _background(ground: Surface, grid: Grid, pattern: int) -> Tensor:
    x, y, pixel = _seen(ground, grid)
    zoom = torch.exp(ground["zoom"] * (grid.time - 0.5))
    angle = ground["turn"] * (grid.time - 0.5) + ground["angle"]
    x = x * zoom + ground["pan_x"] * grid.time
    y = y * zoom + ground["pan_y"] * grid.time
    x, y = _turned(x, y, angle)
    mix = _pattern(ground, x, y, pixel * zoom, pattern)
    mix = mix.expand(len(x), grid.time.shape[1], grid.y.shape[2], grid.x.shape[3])
    light = 1 - 0.10 * (grid.x**2 + grid.y**2)
    grain = 1 + ground["grain"] * _texture(ground["tile"], x / 3, y / 3)
    rgb = ground["rgb1"] + mix[:, None] * (ground["rgb2"] - ground["rgb1"])
    return rgb * (light * grain)[:, None]


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _pattern(ground: Surface, x: Tensor, y: Tensor, pixel: Tensor, pattern: int) -> Tensor:
    """Return how much of the second colour is seen, in [0, 1]; patterns as in tiny_prompts."""
    name, f = NAMES["pattern"][pattern], ground["frequency"]
    u, v = x * f + ground["offset"][0], y * f + ground["offset"][1]
    match name:
        case "plain":
            return (0.5 + 0.42 * x).clamp(0, 1)
        case "striped":
            return _stripes(u, f, pixel)
        case "checkered":
            rows, columns = (2 * _stripes(w * 0.7, f * 0.7, pixel) - 1 for w in (u, v))
            return 0.5 + 0.5 * rows * columns
        case "dotted":
            u, v = u - torch.floor(u) - 0.5, v - torch.floor(v) - 0.5
            return _inside((torch.sqrt(u * u + v * v + 1e-8) - 0.30) / f, pixel)
        case "wavy":
            return _stripes(u + 0.22 * torch.sin(v * 3.0), f * 1.2, pixel)
    waves = torch.zeros_like(x)
    for angle, frequency, phase in zip(
        ground["wave_angle"], ground["wave_frequency"], ground["wave_phase"], strict=True
    ):
        along = x * torch.cos(angle) + y * torch.sin(angle)
        waves = waves + torch.sin(along * frequency * 2.2 + phase)
    return 0.5 + 0.5 * torch.tanh(waves * 0.55)  # cloudy


def _stripes(cycles: Tensor, frequency: Tensor, pixel: Tensor) -> Tensor:
    """A square wave of ``cycles``; ``frequency`` is their number per unit."""
    return 1 - _inside(((cycles - torch.floor(cycles) - 0.5).abs() - 0.25) / frequency, pixel)


def _inside(distance: Tensor, pixel: Tensor) -> Tensor:
    """Return the share of a pixel that lies inside an outline."""
    return (0.5 - distance / pixel).clamp(0, 1)


def _draw_sprite(clips: Tensor, sprite: Surface, grid: Grid, shape: int) -> tuple[Tensor, Tensor]:
    """Return the clips with a sprite and its soft shadow, and the sprite's coverage."""
    x, y, pixel = _seen(sprite, grid)
    middle_x, middle_y = _path(sprite, grid.time)
    radius = sprite["radius"] * (sprite["scale"] + sprite["growth"] * grid.time)
    angle = sprite["turn_start"] + sprite["turn"] * grid.time

    def outline(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, v = _turned(x / radius, y / radius, angle)
        return u, v, OUTLINES[shape](u, v) * radius

    x, y = x - middle_x, y - middle_y
    shadow = 0.38 * (0.5 - outline(x - _SHADOW[0], y - _SHADOW[1])[2] / 0.14).clamp(0, 1)
    u, v, distance = outline(x, y)
    cover = _inside(distance, pixel)
    light = 1.04 - 0.16 * (y / radius) - 0.30 * (1 + distance / 0.055).clamp(0, 1)
    stripes = sprite["striped"] * _stripes(v * 1.9, 1.9 / radius, pixel) * 0.62
    grain = sprite["grain"] * _texture(sprite["tile"], u / 5, v / 5)
    rgb = sprite["rgb"] + stripes[:, None] * (0.97 - sprite["rgb"]) + grain[:, None]
    below = clips * (1 - shadow[:, None])
    return below + cover[:, None] * (rgb * light[:, None] - below), cover


def _path(sprite: Surface, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sprite's middle over time."""
    phase = sprite["orbit_speed"] * time + sprite["orbit_phase"]
    sway = torch.sin(sprite["sway_speed"] * time + sprite["sway_phase"])
    hops = torch.sin(math.pi * sprite["bounces"] * time + sprite["bounce_phase"]).abs()
    x = sprite["dx"] * (time - 0.5) + sprite["orbit"] * torch.cos(phase) + sprite["sway"] * sway
    y = sprite["dy"] * (time - 0.5) + sprite["orbit"] * torch.sin(phase)
    return sprite["x"] + x, sprite["y"] + y + sprite["bounce"] * (0.6 - hops)


def _texture(tile: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Look up each clip's noise at ``x``, ``y``, mirrored beyond [-1, 1]; about unit variance."""
    batch, frames, height, width = x.shape
    tiles = _tiles(x.device)[tile.reshape(-1).long()][:, None]
    where = torch.stack([x, y], -1).reshape(batch, frames * height, width, 2)
    noise = F.grid_sample(tiles, where, padding_mode="reflection", align_corners=True)
    return noise.reshape(batch, frames, height, width)


@functools.cache
def _tiles(device: torch.device) -> Tensor:
    """``(TEXTURES, 96, 96)``: smooth noise of two sizes, the same in every run."""
    generator = torch.Generator().manual_seed(7)

    def noise(side: int) -> Tensor:
        coarse = torch.randn(TEXTURES, 1, side, side, generator=generator)
        return F.interpolate(coarse, (96, 96), mode="bicubic", align_corners=True)[:, 0]

    tiles = noise(24) + 0.6 * noise(48)
    return (tiles / tiles.std((1, 2), keepdim=True)).to(device)
