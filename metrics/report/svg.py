"""What charts are made of: axes, grids, marks and keys, as SVG that the page's style colours.

Presets have the classes ``s0`` to ``s6``, which the style sheet gives colours after Okabe and Ito;
they differ in marker and dash too, so that no reading depends on colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

SERIES = 7
WIDTH, LEFT, RIGHT = 560, 80, 540  # of a chart and of what its axes enclose, in pixels
CHARACTER = 10.5  # room for one on a phone, where text is largest
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "1 3", "12 4", "4 4")


@dataclass(frozen=True, slots=True)
class Axis:
    """A line of numbers on the page.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: In pixels.
        stop: In pixels; may lie before ``start``.
        whole: Whether only whole numbers make sense.
    """

    low: float
    high: float
    start: float
    stop: float
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers on the axis."""
        step = _round_step((self.high - self.low) / about or 1.0)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 9) for n in range(first, last + 1)]


def drawing(width: float, height: float, content: str, title: str, attributes: str = "") -> str:
    """A picture of a size in pixels, which scales with the page."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}"'
        f"{attributes}>{content}</svg>"
    )


def frame(x: Axis, y: Axis, across: str, up: str, unit: str = "") -> str:
    """Grid, ticks and labels of two axes; ``unit`` follows the numbers of the horizontal one."""
    parts = [
        f'<path class="grid" d="M{x.start} {y(t):.1f}H{x.stop}"/>'
        + label(x.start - 8, y(t) + 4, f"{t:g}", "tick", "end")
        for t in y.ticks()
    ]
    parts += [label(x(t), y.start + 18, f"{t:g}{unit}", "tick", "middle") for t in x.ticks(7)]
    parts.append(f'<path class="base" d="M{x.start} {y.start}H{x.stop}"/>')
    parts.append(label((x.start + x.stop) / 2, y.start + 38, across, "axis", "middle"))
    return "".join(parts) + upright((y.start + y.stop) / 2, up)


def label(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    """Text at a place; ``kind`` is a class of the style sheet."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def upright(y: float, text: str) -> str:
    """The label of a vertical axis, at the left edge."""
    return (
        f'<text class="axis" transform="translate(19 {y:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(text)}</text>'
    )


def marker(index: int, cx: float, cy: float) -> str:
    """The mark of a preset: circle, square, triangle or diamond."""
    shapes = (
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="6"/>',
        f'<rect x="{cx - 5.5:.1f}" y="{cy - 5.5:.1f}" width="11" height="11"/>',
        f'<path class="solid" d="M{cx:.1f} {cy - 7:.1f}l7 12.5h-14z"/>',
        f'<path class="solid" d="M{cx:.1f} {cy - 7.5:.1f}l7.5 7.5l-7.5 7.5l-7.5 -7.5z"/>',
    )
    return shapes[index % len(shapes)]


def mark_key(index: int) -> str:
    """The mark of a preset, to stand in text."""
    return (
        f'<svg class="key" viewBox="0 0 18 18" aria-hidden="true">'
        f'<g class="mark s{index % SERIES}">{marker(index, 9, 9)}</g></svg>'
    )


def line_key(index: int) -> str:
    """The line of a preset, to stand in text."""
    return (
        '<svg class="key long" viewBox="0 0 30 10" aria-hidden="true">'
        f'<path class="line s{index % SERIES}" stroke-dasharray="{DASHES[index % SERIES]}" '
        'd="M1 5H29"/></svg>'
    )


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step * 0.999)
