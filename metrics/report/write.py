"""Writes a report: index.html, report.md, results.csv and results.json, each whole or not there."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.metrics.report import words
from vidsparse.metrics.report.packed_video import QUALITIES, Quality, packed_video, pane_size
from vidsparse.metrics.report.page import Preview, render
from vidsparse.metrics.report.results import Clip, Results

MOST_PAGE_BYTES = 29_000_000
MOST_CLIPS = 24
FILES = ("index.html", "report.md", "results.csv", "results.json")


def write_report(folder: Path, results: Results) -> None:
    """Write all files of a report.

    Args:
        folder: Where to; the frames that the results name lie in it.
        results: What to report.

    Raises:
        BadInputError: When frames are missing or not what the results say.
    """
    page = render(results, previews(folder, results, _room(results)))
    json = results.model_dump_json(indent=1) + "\n"
    texts = (page, markdown(results), table(results), json)
    for name, text in zip(FILES, texts, strict=True):
        replace_file(folder / name, lambda part, text=text: part.write_bytes(text.encode()))


def _room(results: Results) -> int:
    """Bytes of video for which the page has room beside all else; as text they take a third more.

    The rest is measured with all clips; a little is kept for what is said of the previews' size.
    """
    bare = [Preview(clip, b"", 0, 0, QUALITIES[0]) for clip in shown_clips(results)]
    rest = len(render(results, bare).encode())
    return max(0, (MOST_PAGE_BYTES - rest - 2000) * 3 // 4)


def previews(folder: Path, results: Results, most_bytes: int) -> list[Preview]:
    """Encode the clips that are shown, all at the best quality that fits.

    Args:
        folder: Of the report.
        results: Whose clips.
        most_bytes: Of all videos together.
    """
    clips = shown_clips(results)
    made: list[Preview] = []
    for quality in QUALITIES:
        made.clear()
        for clip in clips:
            made.append(_preview(folder, results, clip, quality))
            if sum(len(each.video) for each in made) > most_bytes:
                break
        else:
            return made
    return made[:-1]


def shown_clips(results: Results) -> list[Clip]:
    """All clips, or of many: of each preset the worst, the median and the best, then the others."""
    if len(results.clips) <= MOST_CLIPS:
        return results.clips
    chosen: dict[int, Clip] = {}
    for row in results.summary:
        own = [clip for clip in results.clips if clip.preset == row.preset]
        own.sort(key=lambda clip: np.inf if (p := clip.scores.get("psnr")) is None else p)
        for clip in (own[0], own[len(own) // 2], own[-1]):
            chosen[id(clip)] = clip
    chosen |= {id(clip): clip for clip in results.clips}
    return list(chosen.values())[:MOST_CLIPS]


def markdown(results: Results) -> str:
    """A summary for a pull request."""
    lines = [f"# {_cell(words.headline(results))}", "", _cell(words.conditions(results)), ""]
    lines += [f"> {_cell(line)}" for line in words.warnings(results)]
    psnr = f"PSNR, dB ({words.floor(results)})"
    lines += ["", f"| preset | speed-up | {psnr} | SSIM | mean density | dense steps |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {_cell(card['name'])} | {card['speed']} | {card['psnr']} {card['interval']} | "
        f"{card['ssim']} | {_density(card)} | {card['dense_steps']} |"
        for card in words.cards(results)
    ]
    names = " | ".join(_cell(row.preset) for row in results.summary)
    lines += ["", f"| score | {names} |", "|---|" + "---|" * len(results.summary)]
    for row in words.score_table(results):
        mark = f" (stand-in for {row['stands_in_for']})" if row["tier"] == "stand-in" else ""
        label = _cell(f"{row['label']}{mark}, {row['better']}")
        lines.append(f"| {label} | {' | '.join(_cell(v) for v in row['cells'])} |")
    lines += ["", *(f"- {_cell(line)}" for line in words.pairs(results))]
    lines += ["", f"| prompt | seed | preset | density | dense steps | {psnr} |"]
    lines += ["|---|---|---|---|---|---|"]
    for clip in results.clips:
        row = words.clip_row(results, clip)
        lines.append(
            f"| {_cell(row['prompt'])} | {row['seed']} | {_cell(row['preset'])} | "
            f"{row['density']} | {row['dense_steps']} | {row['psnr']} |"
        )
    longest = max(map(len, re.findall("`+", results.command)), default=0)
    fence = "`" * max(3, longest + 1)
    lines += ["", fence, results.command, fence]
    return "\n".join(lines) + "\n"


def _density(card: dict[str, Any]) -> str:
    return card["density"] + (f" ({card['asked']} asked)" if card["asked"] else "")


def table(results: Results) -> str:
    """Every number in long form, a line each; an empty value is infinite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("preset", "prompt", "seed", "frame", "metric", "value"))
    for clip in results.clips:
        start = (_text(clip.preset), _text(results.prompts[clip.prompt_index]), clip.seed)
        writer.writerows((*start, frame, name, value) for frame, name, value in _numbers(clip))
    return text.getvalue()


def _numbers(clip: Clip) -> Iterator[tuple[int | str, str, float | None]]:
    facts: Iterable[tuple[str, float | None]] = (
        ("seconds", clip.seconds),
        ("dense_seconds", clip.dense_seconds),
        ("mean_density", clip.mean_density),
        ("dense_steps_share", clip.dense_steps_share),
        *clip.scores.items(),
    )
    for name, value in facts:
        yield "", name, value
    for name, curve in clip.curves.items():
        for frame, value in enumerate(curve):
            yield frame, name, value


def _text(value: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _cell(text: str) -> str:
    """Text that stays text in Markdown."""
    plain = " ".join(text.split())
    for mark in "\\|`*_[]<>":
        plain = plain.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return plain


def _preview(folder: Path, results: Results, clip: Clip, quality: Quality) -> Preview:
    dense, sparse = (_frames(folder, results, clip.frames[name]) for name in ("dense", "sparse"))
    width, height = pane_size(dense, quality)
    video = packed_video(dense, sparse, results.video.fps, quality)
    return Preview(clip, video, width, height, quality)


def _frames(folder: Path, results: Results, name: str) -> np.ndarray:
    video = results.video
    expected = (video.frames, video.height, video.width, 3)
    try:
        frames = np.load(folder / name, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise BadInputError(f"the frames {folder / name} cannot be read ({error})") from None
    if frames.shape != expected or frames.dtype != np.uint8:
        raise BadInputError(f"{folder / name} holds {frames.dtype} {frames.shape}, not {expected}")
    return frames
