"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vidsparse.metrics.report import charts, words
from vidsparse.metrics.report.packed_video import GAIN, colour_scale
from vidsparse.metrics.report.results import Clip, Results

FOLDER = Path(__file__).parent / "template"
STAGES = ("text_encoder", "attention", "planning", "other", "vae")


@dataclass(frozen=True, slots=True)
class Preview:
    """A clip that can be watched.

    Attributes:
        clip: Which.
        video: Three panes side by side, mp4.
        width: Of a pane, in pixels.
        height: Of a pane, in pixels.
    """

    clip: Clip
    video: bytes
    width: int
    height: int


def render(results: Results, previews: Sequence[Preview]) -> str:
    """Fill the page; what comes from users is escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "player.js").read_text(encoding="utf-8"),
        headline=words.headline(results),
        cards=words.cards(results),
        conditions=words.conditions(results),
        warnings=words.warnings(results),
        chosen=_which(results, previews),
        gain=GAIN,
        scale=colour_scale(),
        scale_top=255 // GAIN,
        views=[_view(results, preview) for preview in previews],
        player=[_player(results, at, preview) for at, preview in enumerate(previews)],
        videos=[base64.b64encode(preview.video).decode() for preview in previews],
        pareto=charts.pareto(results),
        stages=_stages(results),
        table=words.score_table(results),
        pairs=words.pairs(results),
        clips=[words.clip_row(results, clip) for clip in results.clips],
        command=results.command,
        facts=words.facts(results),
        presets=results.presets,
    )


def _which(results: Results, previews: Sequence[Preview]) -> str:
    if len(previews) == len(results.clips):
        return ""
    return (
        f"{len(previews)} of {len(results.clips)} clips are shown: of each preset the worst, the "
        "median and the best by PSNR, then the others in order."
    )


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
    }


def _view(results: Results, preview: Preview) -> dict[str, Any]:
    clip = preview.clip
    label = f"{clip.preset}, seed {clip.seed}: {results.prompts[clip.prompt_index]}"
    return {"label": label, "charts": [c for c in _charts(results, clip) if c["svg"]]}


def _charts(results: Results, clip: Clip) -> list[dict[str, Any]]:
    rivals = [
        (at, row.preset, other)
        for at, row in enumerate(results.summary)
        for other in results.clips
        if other.preset == row.preset
        and (other.prompt_index, other.seed) == (clip.prompt_index, clip.seed)
    ]
    legend = [(at % charts.SERIES, name) for at, name, _ in rivals]
    found = []
    for metric, label in (("psnr", "PSNR of each frame, dB"), ("ssim", "SSIM of each frame")):
        curves = [(at, name, each.curves.get(metric, [])) for at, name, each in rivals]
        found.append(_chart(label, charts.lines(curves, across="frame", up=label), "", legend))
    steps = [(at, name, words.step_density(each)) for at, name, each in rivals]
    found.append(
        _chart(
            "Density of each step",
            charts.lines(steps, across="denoising step", up="density", low=0.0),
            f"{clip.preset}: mean {clip.mean_density:.2f}, {clip.dense_steps_share:.0%} of the "
            "steps dense",
            legend,
        )
    )
    drift = [(at, name, each.step_latent_error) for at, name, each in rivals]
    label = "relative error of the latents"
    drawn = charts.lines(drift, across="denoising step", up=label, low=0.0)
    found.append(_chart("How far the latents are from dense", drawn, "", legend))
    return found + _maps(clip)


def _maps(clip: Clip) -> list[dict[str, Any]]:
    """Heat maps of one clip."""
    errors = [value for row in clip.attention_error for value in row if value is not None]
    maps = [
        ("Density by layer and step", clip.density, "step", 1.0, "1 is dense"),
        ("Density by layer and head", clip.head_density, "head", 1.0, "mean over sparse steps"),
        (
            "Error of attention by layer and step",
            clip.attention_error,
            "step",
            max(errors, default=0.0),
            "relative L1 against dense attention on the same input, sampled rows",
        ),
    ]
    return [
        _chart(
            title,
            charts.heat_map(grid, across=across, up="layer", low=0.0, high=high, title=title),
            f"{clip.preset}; {caption}",
        )
        for title, grid, across, high, caption in maps
        if grid and any(grid)
    ]


def _chart(
    title: str, svg: str, caption: str, legend: Sequence[tuple[int, str]] = ()
) -> dict[str, Any]:
    return {"title": title, "svg": svg, "caption": caption, "legend": legend}


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
    return charts.stages(
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
