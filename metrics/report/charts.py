"""Charts as inline SVG: nothing to load, sharp in print, coloured by the page's own style.

Presets have the classes ``s0`` to ``s6``, which the style sheet gives the colours of Okabe and Ito;
they differ in marker or dash too. Text in them is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from vidsparse.metrics.report.results import Grid, Results, Score

SERIES = 7
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 4")


@dataclass(frozen=True, slots=True)
class Axis:
    """A line of numbers on the page.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: In pixels.
        stop: In pixels; may lie before ``start``.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers on the axis."""
        step = _round_step((self.high - self.low) / about or 1.0)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def pareto(results: Results) -> str:
    """PSNR over speed-up, one mark a preset with both intervals; up and right is better."""
    marks = [(i, row) for i, row in enumerate(results.summary) if row.scores["psnr"].mean]
    if not marks:
        return ""
    scores = [row.scores["psnr"] for _, row in marks]
    lows = [s.mean if s.low is None else s.low for s in scores]
    highs = [s.mean if s.high is None else s.high for s in scores]
    floor = results.noise_floor.psnr if results.noise_floor else None
    top, bottom = max(filter(None, highs)), min(filter(None, lows))
    shows_floor = floor is not None and floor < top + 15
    top = max(top, floor) if shows_floor and floor is not None else top
    margin = max(1.0, 0.15 * (top - bottom))
    speeds = [value for _, r in marks for value in (r.speedup.low, r.speedup.high, 1.0)]
    wide = max(0.05, 0.12 * (max(speeds) - min(speeds)))
    x = Axis(min(speeds) - wide, max(speeds) + wide, 58, 540)
    y = Axis(bottom - margin, top + margin, 300, 16)
    parts = [_frame(x, y, "speed-up over dense", "PSNR against dense, dB", "x")]
    if shows_floor and floor is not None:
        parts.append(_level(x, y(floor), f"noise floor {floor:.1f} dB"))
    for index, row in marks:
        parts.append(_mark(index, row, x, y))
    return _svg(560, 350, "".join(parts), "PSNR over speed-up")


def _mark(index: int, row, x: Axis, y: Axis) -> str:  # noqa: ANN001 a PresetSummary
    score, speed = row.scores["psnr"], row.speedup
    cx, cy = x(speed.median), y(score.mean)
    bars = f'<path d="M{x(speed.low):.1f} {cy:.1f}H{x(speed.high):.1f}"/>'
    if score.low is not None:
        bars += f'<path d="M{cx:.1f} {y(score.low):.1f}V{y(score.high):.1f}"/>'
    left = cx > 430
    label = (
        f'<text x="{cx + (-10 if left else 10):.1f}" y="{cy - 9:.1f}" '
        f'text-anchor="{"end" if left else "start"}">{escape(row.preset)}</text>'
    )
    return (
        f'<g class="mark s{index % SERIES}">{bars}{_marker(index, cx, cy)}{label}'
        f"<title>{escape(row.preset)}: {escape(row.sentence)}</title></g>"
    )


def _marker(index: int, cx: float, cy: float) -> str:
    shapes = (
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5.5"/>',
        f'<rect x="{cx - 5:.1f}" y="{cy - 5:.1f}" width="10" height="10"/>',
        f'<path class="solid" d="M{cx:.1f} {cy - 7:.1f}l6.5 12h-13z"/>',
        f'<path class="solid" d="M{cx:.1f} {cy - 7:.1f}l7 7l-7 7l-7 -7z"/>',
    )
    return shapes[index % len(shapes)]


def lines(
    series: Sequence[tuple[int, str, Sequence[Score]]],
    *,
    across: str,
    up: str,
    low: float | None = None,
) -> str:
    """Curves over frames or steps; a gap where a value is None.

    Args:
        series: Number of the preset, its name and its values.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
        low: Where the vertical axis starts, if not at the least value.
    """
    values = [v for _, _, each in series for v in each if v is not None]
    if not values:
        return ""
    longest = max(len(each) for _, _, each in series)
    least = min(values) if low is None else low
    margin = 0.06 * (max(values) - least) or 0.02 * abs(least) or 0.5
    x = Axis(0, max(1, longest - 1), 58, 540)
    y = Axis(least - (margin if low is None else 0), max(values) + margin, 190, 14)
    parts = [_frame(x, y, across, up)]
    for index, name, each in series:
        points, pen = [], "M"
        for at, value in enumerate(each):
            if value is None:
                pen = "M"
                continue
            points.append(f"{pen}{x(at):.1f} {y(value):.1f}")
            pen = "L"
        parts.append(
            f'<path class="line s{index % SERIES}" stroke-dasharray="{DASHES[index % SERIES]}" '
            f'd="{"".join(points)}"><title>{escape(name)}</title></path>'
        )
    cursor = f'<path class="cursor" d="M{x.start:.1f} {y.start}V{y.stop}"/>'
    data = f' data-start="{x.start}" data-stop="{x.stop}" data-count="{longest}"'
    return _svg(560, 236, "".join(parts) + cursor, f"{up} over {across}", data)


def heat_map(grid: Grid, *, across: str, up: str, low: float, high: float, title: str) -> str:
    """A grid of numbers as colours, with its scale; row 0 on top, empty where None."""
    rows, columns = len(grid), max(map(len, grid))
    cell = (470 / columns, min(22.0, max(5.0, 200 / rows)))
    height = rows * cell[1]
    colours = viridis(np.array([[_share(v, low, high) for v in row] for row in grid]))
    cells = [
        f'<rect x="{58 + c * cell[0]:.2f}" y="{8 + r * cell[1]:.2f}" width="{cell[0] + 0.3:.2f}" '
        f'height="{cell[1] + 0.3:.2f}" fill="{colours[r][c]}"><title>{up} {r}, {across} {c}: '
        f"{value:.3f}</title></rect>"
        for r, row in enumerate(grid)
        for c, value in enumerate(row)
        if value is not None
    ]
    x, y = Axis(0, columns, 58, 528), Axis(0, rows, 8, 8 + height)
    labels = [
        f'<text class="tick" x="{x(n + 0.5):.1f}" y="{24 + height:.1f}" '
        f'text-anchor="middle">{n}</text>'
        for n in _indices(columns, 10)
    ]
    labels += [
        f'<text class="tick" x="52" y="{y(n + 0.5) + 4:.1f}" text-anchor="end">{n}</text>'
        for n in _indices(rows, max(1, int(height // 14)))
    ]
    labels.append(
        f'<text class="axis" x="293" y="{44 + height:.1f}" text-anchor="middle">'
        f"{escape(across)}</text>"
        f'<text class="axis" transform="translate(16 {8 + height / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    return _svg(560, height + 84, "".join(cells + labels) + _scale(low, high, 56 + height), title)


def stages(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Where the seconds went: a bar a run, a part a stage."""
    longest = max(sum(seconds for _, seconds in parts) for _, parts in rows) or 1.0
    x = Axis(0, longest, 110, 500)
    made = []
    for at, (name, parts) in enumerate(rows):
        top, done = 10 + at * 30, 0.0
        made.append(
            f'<text class="axis" x="102" y="{top + 15}" text-anchor="end">{escape(name)}</text>'
        )
        for index, (stage, seconds) in enumerate(parts):
            wide = x(done + seconds) - x(done)
            made.append(
                f'<rect class="stage t{index}" x="{x(done):.1f}" y="{top}" width="{wide:.1f}" '
                f'height="21"><title>{escape(name)}, {escape(stage)}: {seconds:.2f} s</title>'
                "</rect>"
            )
            done += seconds
        made.append(f'<text class="tick" x="{x(done) + 6:.1f}" y="{top + 15}">{done:.1f} s</text>')
    return _svg(560, 20 + 30 * len(rows), "".join(made), "time by stage")


def viridis(shares: np.ndarray) -> list[list[str]]:
    """Colours of shares in [0, 1], as CSS."""
    levels = np.nan_to_num(shares * 255).clip(0, 255).astype(np.uint8)
    rgb = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return [[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in row] for row in rgb.tolist()]


def _share(value: float | None, low: float, high: float) -> float:
    return 0.0 if value is None else (value - low) / ((high - low) or 1.0)


def _scale(low: float, high: float, top: float) -> str:
    colours = viridis(np.linspace(0, 1, 24)[None])[0]
    wide = 160 / len(colours)
    bars = "".join(
        f'<rect x="{368 + i * wide:.2f}" y="{top:.1f}" width="{wide + 0.3:.2f}" height="8" '
        f'fill="{colour}"/>'
        for i, colour in enumerate(colours)
    )
    ends = ((368, "start", low), (528, "end", high))
    return bars + "".join(
        f'<text class="tick" x="{x}" y="{top + 21:.1f}" text-anchor="{anchor}">{value:.3g}</text>'
        for x, anchor, value in ends
    )


def _frame(x: Axis, y: Axis, across: str, up: str, unit: str = "") -> str:
    grid = "".join(
        f'<path class="grid" d="M{x.start} {y(t):.1f}H{x.stop}"/><text class="tick" '
        f'x="{x.start - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in (round(t, 6) for t in y.ticks())
    )
    grid += "".join(
        f'<text class="tick" x="{x(t):.1f}" y="{y.start + 17}" text-anchor="middle">'
        f"{round(t, 6):g}{unit}</text>"
        for t in x.ticks(8)
    )
    middle = (y.start + y.stop) / 2
    return (
        f'{grid}<path class="base" d="M{x.start} {y.start}H{x.stop}"/>'
        f'<text class="axis" x="{(x.start + x.stop) / 2}" y="{y.start + 37}" '
        f'text-anchor="middle">{escape(across)}</text>'
        f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )


def _level(x: Axis, at: float, label: str) -> str:
    return (
        f'<path class="level" d="M{x.start} {at:.1f}H{x.stop}"/>'
        f'<text class="tick" x="{x.stop}" y="{at - 5:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _indices(number: int, most: int) -> range:
    return range(0, number, max(1, math.ceil(number / most)))


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step * 0.999)


def _svg(width: float, height: float, inside: str, label: str, data: str = "") -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"{data}>'
        f"{inside}</svg>"
    )
