"""What a speed-up costs: PSNR over speed-up, a mark a preset, a dot a clip."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vidsparse.metrics.report.results import Clip, PresetSummary, Results
from vidsparse.metrics.report.svg import (
    CHARACTER,
    LEFT,
    RIGHT,
    SERIES,
    WIDTH,
    Axis,
    drawing,
    frame,
    label,
    marker,
)

Box = tuple[float, float, float, float]
TOP, BOTTOM = 34, 316


def pareto(results: Results) -> str:
    """Marks with both intervals, every clip behind them; up and to the right is better.

    Infinite PSNR lies above the frame. The noise floor and the largest speed-up that free
    attention would give are lines, or words where they lie outside.
    """
    points = [(clip.preset, speed, psnr) for clip, speed, psnr in _points(results.clips)]
    if not points and not results.summary:
        return ""
    x, y, notes = _axes(results, points)
    index = {row.preset: at for at, row in enumerate(results.summary)}
    parts = [frame(x, y, "speed-up over dense", "PSNR against dense, dB", "x"), notes]
    parts += [
        f'<circle class="dot s{index[name] % SERIES}" cx="{x(speed):.1f}" '
        f'cy="{TOP - 14 if psnr is None else y(psnr):.1f}" r="2.6"/>'
        for name, speed, psnr in points
        if name in index
    ]
    if any(psnr is None for _, _, psnr in points):
        parts.append(label(LEFT, TOP - 10, "identical", "tick"))
    taken: list[Box] = [
        (cx - 8, cy - 8, cx + 8, cy + 8) for cx, cy in (_place(r, x, y) for r in results.summary)
    ]
    parts += [_mark(at, row, x, y, taken) for at, row in enumerate(results.summary)]
    return drawing(WIDTH, 366, "".join(parts), "PSNR over speed-up, a mark a preset")


def _points(clips: list[Clip]) -> Iterator[tuple[Clip, float, float | None]]:
    for clip in clips:
        if "psnr" in clip.scores:
            yield clip, clip.dense_seconds / clip.seconds, clip.scores["psnr"]


def _axes(
    results: Results, points: list[tuple[str, float, float | None]]
) -> tuple[Axis, Axis, str]:
    """Both axes around everything measured, and the lines and words of what it is held against."""
    speeds = [1.0, *(speed for _, speed, _ in points)]
    ends = [v for row in results.summary for v in (row.speedup.low, row.speedup.high)]
    speeds += [v for v in ends if v is not None]
    scores = [row.scores["psnr"] for row in results.summary]
    psnrs = [psnr for _, _, psnr in points if psnr is not None]
    psnrs += [v for s in scores for v in (s.mean, s.low, s.high) if v is not None]
    psnrs = psnrs or [0.0, 1.0]
    floor = results.noise_floor.psnr if results.noise_floor else None
    limits = [row.gain.limit for row in results.summary if row.gain]
    limit = sorted(limits)[len(limits) // 2] if limits else None
    near_floor = floor is not None and floor < max(psnrs) + 12
    near_limit = limit is not None and limit < max(speeds) + 0.6
    psnrs += [floor] if near_floor and floor is not None else []
    speeds += [limit] if near_limit and limit is not None else []
    wide = max(0.06, 0.1 * (max(speeds) - min(speeds)))
    high = max(0.8, 0.1 * (max(psnrs) - min(psnrs)))
    x = Axis(min(speeds) - wide, max(speeds) + wide, LEFT, RIGHT)
    y = Axis(min(psnrs) - high, max(psnrs) + high, BOTTOM, TOP)
    notes = f'<path class="level" d="M{x(1):.1f} {BOTTOM}V{TOP}"/>'
    if floor is not None and near_floor:
        notes += f'<path class="level" d="M{LEFT} {y(floor):.1f}H{RIGHT}"/>'
        notes += label(RIGHT, y(floor) - 6, f"noise floor {floor:.1f} dB", "tick", "end")
    elif floor is not None:
        notes += label(RIGHT, TOP - 8, f"noise floor {floor:.1f} dB, above", "tick", "end")
    if limit is not None and near_limit:
        notes += f'<path class="level" d="M{x(limit):.1f} {BOTTOM}V{TOP}"/>'
        words = f"{limit:.2f}x if attention were free"
        right = x(limit) - LEFT < CHARACTER * len(words)
        at, anchor = (x(limit) + 5, "start") if right else (x(limit) - 5, "end")
        notes += label(at, BOTTOM - 7, words, "tick", anchor)
    return x, y, notes


def _place(row: PresetSummary, x: Axis, y: Axis) -> tuple[float, float]:
    mean = row.scores["psnr"].mean
    return x(row.speedup.median), TOP - 14 if mean is None else y(mean)


def _mark(index: int, row: PresetSummary, x: Axis, y: Axis, taken: list[Box]) -> str:
    cx, cy = _place(row, x, y)
    score, speed = row.scores["psnr"], row.speedup
    bars = ""
    if speed.low is not None and speed.high is not None:
        bars = f'<path d="M{x(speed.low):.1f} {cy:.1f}H{x(speed.high):.1f}"/>'
    if score.low is not None and score.high is not None:
        bars += f'<path d="M{cx:.1f} {y(score.low):.1f}V{y(score.high):.1f}"/>'
    name = row.preset if score.mean is not None else f"{row.preset}, identical"
    return (
        f'<g class="mark s{index % SERIES}">{bars}{marker(index, cx, cy)}'
        f"{_name(name, cx, cy, taken)}<title>{escape(row.preset)}: {escape(row.sentence)}"
        "</title></g>"
    )


def _name(text: str, cx: float, cy: float, taken: list[Box]) -> str:
    """The name of a mark where it covers no other name, if there is such a place."""
    wide = CHARACTER * len(text)
    places = [(cx + side * 11, cy + up, side) for up in (-9, 18, 4, -24, 33) for side in (1, -1)]

    def box(x: float, y: float, side: int) -> Box:
        return (x if side > 0 else x - wide, y - 12, x + wide if side > 0 else x, y + 3)

    def covers(one: Box) -> bool:
        outside = one[0] < LEFT or one[2] > RIGHT + 16
        return outside or any(
            one[0] < b[2] and b[0] < one[2] and one[1] < b[3] and b[1] < one[3] for b in taken
        )

    x, y, side = next((place for place in places if not covers(box(*place))), places[0])
    taken.append(box(x, y, side))
    return label(x, y, text, "name", "start" if side > 0 else "end")
