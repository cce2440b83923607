"""Grids of numbers as colours: a picture of one pixel a cell, so that thousands stay small."""

from __future__ import annotations

import base64
import math

import cv2
import numpy as np

from vidsparse.metrics.report.results import Grid
from vidsparse.metrics.report.svg import LEFT, RIGHT, WIDTH, Axis, drawing, label, upright


def heat_map(grid: Grid, *, across: str, up: str, low: float, high: float, title: str) -> str:
    """A grid with its scale; row 0 on top, grey where None.

    The numbers are beside the picture, for the page's script to read out.

    Args:
        grid: Rows of equal length.
        across: What a column is.
        up: What a row is.
        low: Value of the darkest colour.
        high: Value of the brightest.
        title: For those who cannot see it.
    """
    rows, columns = len(grid), len(grid[0])
    height = float(np.clip(22 * rows, 88, 220))
    x, y = Axis(0, columns, LEFT, RIGHT), Axis(0, rows, 8, 8 + height)
    box = f'x="{LEFT}" y="8" width="{RIGHT - LEFT}" height="{height:g}"'
    parts = [
        f'<rect class="nothing" {box}/><image class="cells" {box} preserveAspectRatio="none" '
        f'href="data:image/png;base64,{_picture(grid, low, high)}"/>'
    ]
    parts += [label(x(n + 0.5), 25 + height, str(n), "tick", "middle") for n in _some(columns, 12)]
    parts += [
        label(LEFT - 8, y(n + 0.5) + 4, str(n), "tick", "end")
        for n in _some(rows, max(1, int(height // 18)))
    ]
    parts.append(label((LEFT + RIGHT) / 2, 46 + height, across, "axis", "middle"))
    parts.append(upright(8 + height / 2, up))
    parts.append(_scale(low, high, 58 + height))
    values = ";".join(",".join("" if v is None else f"{v:.3g}" for v in row) for row in grid)
    data = f' class="heat" data-up="{up}" data-across="{across}" data-values="{values}"'
    return drawing(WIDTH, height + 84, "".join(parts), title, data)


def viridis(shares: np.ndarray) -> np.ndarray:
    """Colours of shares in [0, 1] as uint8, BGR as OpenCV has them, ``(rows, columns, 3)``."""
    levels = np.nan_to_num(shares * 255).clip(0, 255).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)


def _picture(grid: Grid, low: float, high: float) -> str:
    values = np.array([[np.nan if v is None else v for v in row] for row in grid], float)
    colours = viridis((values - low) / ((high - low) or 1.0))
    opaque = np.where(np.isnan(values), 0, 255).astype(np.uint8)
    return _png(np.dstack([colours, opaque]))


def _png(pixels: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def _scale(low: float, high: float, top: float) -> str:
    ramp = _png(viridis(np.linspace(0, 1, 64)[None]))
    return (
        f'<image x="{RIGHT - 160}" y="{top:g}" width="160" height="8" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{ramp}"/>'
        + label(RIGHT - 160, top + 22, f"{low:.3g}", "tick")
        + label(RIGHT, top + 22, f"{high:.3g}", "tick", "end")
    )


def _some(number: int, most: int) -> range:
    least = number / most
    steps = (1, 2, 5, 10, 20, 50, 100)
    return range(0, number, next((s for s in steps if s >= least), math.ceil(least)))
