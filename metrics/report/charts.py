"""Curves over frames and steps, and bars of seconds, as inline SVG: nothing to load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vidsparse.metrics.report.results import Score
from vidsparse.metrics.report.svg import (
    CHARACTER,
    DASHES,
    LEFT,
    RIGHT,
    SERIES,
    WIDTH,
    Axis,
    drawing,
    frame,
    label,
)

ROW = 60  # of a bar and its name, in pixels
Series = tuple[int, str, Sequence[Score]]


def lines(
    series: Sequence[Series], *, across: str, up: str, low: float | None = None, chosen: int = -1
) -> str:
    """Curves over frames or steps; a gap where a value is None.

    Args:
        series: Number of the preset, its name and its values.
        across: Label of the horizontal axis.
        up: Label of the vertical axis.
        low: Where the vertical axis starts, if not at the least value.
        chosen: Number of the preset to draw strongest.
    """
    values = [v for _, _, each in series for v in each if v is not None]
    if not values:
        return ""
    longest = max(len(each) for _, _, each in series)
    least = min(values) if low is None else low
    margin = 0.06 * (max(values) - least) or 0.02 * abs(least) or 0.5
    x = Axis(0, max(1, longest - 1), LEFT, RIGHT, whole=True)
    y = Axis(least - (margin if low is None else 0), max(values) + margin, 190, 14)
    paths = [_path(at, name, each, x, y, at == chosen) for at, name, each in series]
    cursor = f'<path class="cursor" d="M{x.start} {y.start}V{y.stop}"/>'
    data = f' data-start="{x.start}" data-stop="{x.stop}" data-count="{longest}"'
    kind = ' class="frames"' if across == "frame" else ""
    content = frame(x, y, across, up) + "".join(paths) + (cursor if kind else "")
    return drawing(WIDTH, 236, content, f"{up} over {across}", kind + data)


def _path(index: int, name: str, values: Sequence[Score], x: Axis, y: Axis, strong: bool) -> str:
    points, pen = [], "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        alone = pen == "M" and (at + 1 == len(values) or values[at + 1] is None)
        points.append(f"{pen}{x(x.low + at):.1f} {y(value):.1f}{'h.01' if alone else ''}")
        pen = "L"
    kind = f"line s{index % SERIES}{' chosen' if strong else ''}"
    return (
        f'<path class="{kind}" stroke-dasharray="{DASHES[index % SERIES]}" '
        f'd="{"".join(points)}"><title>{escape(name)}</title></path>'
    )


def stages(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Where the seconds went: a bar a run with its name above, a part a stage."""
    longest = max(sum(seconds for _, seconds in parts) for _, parts in rows) or 1.0
    x = Axis(0, longest, 2, WIDTH - 12 - CHARACTER * len(f"{longest:.1f} s"))
    made = []
    for at, (name, parts) in enumerate(rows):
        top, done = 26 + at * ROW, 0.0
        made.append(label(2, top - 8, name, "name"))
        for index, (stage, seconds) in enumerate(parts):
            wide = max(0.0, x(done + seconds) - x(done))
            made.append(
                f'<rect class="stage t{index}" x="{x(done):.1f}" y="{top}" width="{wide:.1f}" '
                f'height="26"><title>{escape(name)}, {escape(stage)}: {seconds:.2f} s</title>'
                "</rect>"
            )
            inside = f"{seconds:.1f}"
            if wide > CHARACTER * len(inside) + 4:
                middle = x(done) + wide / 2
                made.append(label(middle, top + 18, inside, f"inside i{index}", "middle"))
            done += seconds
        made.append(label(x(done) + 8, top + 18, f"{done:.1f} s", "tick"))
    return drawing(WIDTH, 4 + ROW * len(rows), "".join(made), "median seconds by stage")
