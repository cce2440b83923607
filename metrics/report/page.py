"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vidsparse.metrics.report import words
from vidsparse.metrics.report.charts import stages
from vidsparse.metrics.report.clip_charts import clip_charts
from vidsparse.metrics.report.packed_video import GAIN, Quality, colour_scale
from vidsparse.metrics.report.pareto import pareto
from vidsparse.metrics.report.results import Clip, Results, Score
from vidsparse.metrics.report.svg import line_key, mark_key

FOLDER = Path(__file__).parent / "template"
STAGES = ("text_encoder", "attention", "planning", "other", "vae")
READ_OUT = {"psnr": ("PSNR", " dB", 1), "ssim": ("SSIM", "", 3)}


@dataclass(frozen=True, slots=True)
class Preview:
    """A clip that can be watched.

    Attributes:
        clip: Which.
        video: Three panes side by side, mp4.
        width: Of a pane, in pixels.
        height: Of a pane, in pixels.
        quality: What it was encoded with.
    """

    clip: Clip
    video: bytes
    width: int
    height: int
    quality: Quality


@cache
def _template() -> Template:
    """Compiled once: that takes longer than to fill it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2")


def render(results: Results, previews: Sequence[Preview]) -> str:
    """Fill the page; what comes from users is escaped."""
    shown = {id(preview.clip): at for at, preview in enumerate(previews)}
    return _template().render(
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "player.js").read_text(encoding="utf-8"),
        results=results,
        headline=words.headline(results),
        cards=words.cards(results),
        conditions=words.conditions(results),
        floor=words.floor(results),
        warnings=words.warnings(results),
        chosen=_which(results, previews),
        encoded=_encoded(results, previews),
        gain=GAIN,
        scale=colour_scale(),
        scale_top=255 // GAIN,
        groups=_groups(results, previews),
        charts=[clip_charts(results, preview.clip) for preview in previews],
        player=[_player(results, at, preview) for at, preview in enumerate(previews)],
        videos=[base64.b64encode(preview.video).decode() for preview in previews],
        mark_key=mark_key,
        line_key=line_key,
        pareto=pareto(results),
        stages=_stages(results),
        table=words.score_table(results),
        pairs=words.pairs(results),
        clips=[(words.clip_row(results, clip), shown.get(id(clip))) for clip in results.clips],
        facts=words.facts(results),
    )


def _which(results: Results, previews: Sequence[Preview]) -> str:
    if len(previews) == len(results.clips):
        return ""
    return (
        f"{len(previews)} of {len(results.clips)} clips are shown: of each preset the worst, the "
        "median and the best by PSNR, then the others in order."
    )


def _encoded(results: Results, previews: Sequence[Preview]) -> str:
    """How far a preview is from the raw frames."""
    if not previews:
        return ""
    text = f"H.264 previews, CRF {previews[0].quality.crf}"
    if previews[0].height + 1 < results.video.height:
        text += f", shrunk from {results.video.height} to {previews[0].height} lines to fit"
    return text


def _groups(results: Results, previews: Sequence[Preview]) -> list[tuple[str, Any]]:
    """The clips to choose from, by prompt."""
    found: dict[int, list[tuple[int, str]]] = {}
    for at, preview in enumerate(previews):
        clip = preview.clip
        psnr = words.number(clip.scores.get("psnr"), "dB", clip.identical)
        label = f"{clip.preset}, seed {clip.seed} ({psnr})"
        found.setdefault(clip.prompt_index, []).append((at, label))
    return [(results.prompts[index], clips) for index, clips in found.items()]


def _player(results: Results, at: int, preview: Preview) -> dict[str, Any]:
    clip = preview.clip
    return {
        "video": at,
        "preset": clip.preset,
        "width": preview.width,
        "height": preview.height,
        "frames": results.video.frames,
        "fps": results.video.fps,
        "caption": words.caption(results, clip),
        "said": _said(clip, results.video.frames),
        "worst": _worst(clip),
    }


def _worst(clip: Clip) -> int:
    """The frame furthest from dense, which an eye should see first; 0 where none is."""
    known = [(value, at) for at, value in enumerate(clip.curves["psnr"]) if value is not None]
    return min(known, default=(0.0, 0))[1]


def _said(clip: Clip, frames: int) -> list[str]:
    """What is read out beside each frame."""
    known = {name: clip.curves[name] for name in READ_OUT if name in clip.curves}

    def said(name: str, value: Score) -> str:
        label, unit, digits = READ_OUT[name]
        return "" if value is None else f"{label} {value:.{digits}f}{unit}"

    if clip.identical:
        return ["identical"] * frames
    found = [
        ", ".join(filter(None, (said(name, curve[frame]) for name, curve in known.items())))
        for frame in range(frames)
    ]
    found[_worst(clip)] += ", the worst of this clip"
    return found


def _stages(results: Results) -> str:
    """Median seconds by stage, dense first."""
    timed = [clip for clip in results.clips if clip.time and clip.dense_time]
    if not timed:
        return ""
    rows = [("dense", [clip.dense_time for clip in timed])]
    rows += [
        (row.preset, [clip.time for clip in timed if clip.preset == row.preset])
        for row in results.summary
    ]
    return stages(
        [
            (
                name,
                [
                    (stage.replace("_", " "), statistics.median(getattr(t, stage) for t in times))
                    for stage in STAGES
                ],
            )
            for name, times in rows
            if times
        ]
    )
