"""What ``vidsparse compare`` found, as a table on the terminal and the lines under it."""

from __future__ import annotations

import statistics
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vidsparse.cli.screen import plain_table, plain_text
from vidsparse.comparison.baselines import STOCK
from vidsparse.comparison.results import decibels
from vidsparse.comparison.spec import DENSE

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import PresetSummary, Results


def make_table(results: Results) -> Table:
    """One row for each preset; times are medians, scores means over prompts."""
    from vidsparse.metrics.catalogue import AS_ASKED

    judged = [row.scores for row in results.summary if AS_ASKED in row.scores]
    columns = ("time", "speed-up", "mean density", "dense steps", "as asked", "PSNR", "SSIM")
    shown = [name for name in columns if judged or name != "as asked"]
    table = plain_table(preset="left", **dict.fromkeys(shown, "right"))
    seconds = statistics.median(clip.dense_seconds for clip in results.clips)
    own = [_plain(judged[0][f"{AS_ASKED}@dense"].mean)] if judged else []
    table.add_row(DENSE, f"{seconds:.1f} s", "1.00x", "1.000", "100%", *own, "", "")
    for row in results.summary:
        own = [clip.seconds for clip in results.clips if clip.preset == row.preset]
        scores = row.scores
        table.add_row(
            f"[bold]{row.preset}[/bold]",
            f"{statistics.median(own):.1f} s",
            f"{row.speedup.median:.2f}x",
            _density(row),
            f"{row.dense_steps_share:.0%}",
            *([_plain(scores[AS_ASKED].mean)] if judged else []),
            _interval(decibels(scores["psnr"].mean), scores["psnr"], 1),
            _interval(_plain(scores["ssim"].mean), scores["ssim"], 3) if "ssim" in scores else "",
        )
    return table


def footer(results: Results, folder: Path, suffix: str = ".mp4") -> list[str]:
    """Under what conditions the table holds, what was gained and lost, and where the files are.

    Args:
        results: To describe.
        folder: Where they lie.
        suffix: Of the videos or images.
    """
    from vidsparse.metrics.report import words

    video, clips, machine = results.video, results.clips, words.machine(results)
    number = len(results.prompts) * len(results.seeds)
    seeds = ", ".join(map(str, results.seeds))
    counts = _count(results.prompts, "prompt"), _count(results.seeds, "seed")
    runs = f"{' x '.join(counts)}, " if number > 1 else ""
    fell_back = {
        f"{clip.preset}: fell back to dense: {reason} ({count} calls)": None
        for clip in clips
        for reason, count in clip.fallbacks.items()
    }
    presets = [row.preset for row in results.summary]
    return [
        "",
        f"[dim]{runs}seed {seeds}, {results.steps} steps, {video.frames} x {video.height} x "
        f"{video.width}, {video.tokens:,} tokens, engine {results.engine} on "
        f"{results.gpu or results.device} in {results.dtype}[/dim]",
        *([f"[dim]{plain_text(machine)}[/dim]"] if machine else []),
        f"[dim]{describe_floor(results)}[/dim]",
        *(f"[dim]{plain_text(line)}[/dim]" for line in words.not_measured(results)),
        *(f"[dim]{line}[/dim]" for line in (*_gains(results), *_best_dense(results))),
        *(f"{row.preset}: {row.sentence}" for row in results.summary if number > 1),
        *map(plain_text, words.timing(results)),
        *_verdicts(results),
        *fell_back,
        *dict.fromkeys(sentence for clip in clips for sentence in clip.notes),
        f"{folder}: index.html, report.md, results.json, results.csv, sheet.png, "
        f"{', '.join(f'{name}{suffix}' for name in (DENSE, *presets))}",
    ]


def describe_floor(results: Results) -> str:
    """How far apart two dense engines are."""
    floor = results.noise_floor
    if floor is None:
        return "noise floor not measured (--noise-floor)"
    if floor.psnr is None:
        return f"noise floor: {floor.how} gave identical frames"
    return f"noise floor, {floor.how}: {floor.psnr:.1f} dB"


def _gains(results: Results) -> list[str]:
    return [
        f"{row.preset}: attention is {row.gain.attention_share:.0%} of a dense run, so at this "
        f"density {row.gain.ideal:.2f}x is ideal, {row.gain.achieved:.2f}x was reached; kernel "
        f"efficiency {row.gain.kernel_efficiency:.2f}"
        for row in results.summary
        if row.gain
    ]


def _best_dense(results: Results) -> list[str]:
    """The speed-ups against dense with the fastest engine, beside those against stock diffusers."""
    engines = results.dense_engines
    best = min(engines, key=lambda name: engines[name])
    stock = engines[STOCK]
    if engines[best] > 0.97 * stock:
        return [f"no dense engine here is faster than that of diffusers ({stock:.3g} ms a call)"]
    gain = 1 - engines[best] / stock
    speeds = []
    for row in results.summary:
        ratios = [
            (clip.dense_seconds - gain * clip.dense_time.attention) / clip.seconds
            for clip in results.clips
            if clip.preset == row.preset and clip.dense_time is not None
        ]
        speeds.append(f"{row.preset} {statistics.median(ratios):.2f}x")
    return [
        f"dense attention takes {stock:.3g} ms a call by diffusers and {engines[best]:.3g} ms by "
        f"{best}; against dense with that, {', '.join(speeds)}"
    ]


def _verdicts(results: Results) -> list[str]:
    """Which preset is closer to dense, where there are several."""
    return [
        f"{row.preset} and {pair.other} by {pair.metric.upper()}: {pair.verdict}"
        for row in results.summary
        for pair in row.against_next or []
    ]


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _density(row: PresetSummary) -> str:
    asked = row.asked_mean_density
    return f"{row.mean_density:.3f}" + ("" if asked is None else f" ({asked:g} asked)")


def _interval(text: str, summary: Any, digits: int) -> str:
    from vidsparse.metrics.report.words import ends

    return f"{text} {ends(summary, digits)}".rstrip()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
