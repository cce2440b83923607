"""What ``vidsparse compare`` found, as a table on the terminal and the lines under it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vidsparse.cli.screen import plain_table, plain_text
from vidsparse.comparison.spec import DENSE

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import PresetSummary, Results
    from vidsparse.metrics.statistics import Summary


def make_table(results: Results) -> Table:
    """One row for each preset; times are medians, scores means over prompts."""
    from vidsparse.metrics.catalogue import AS_ASKED
    from vidsparse.metrics.report.words import number

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
            _interval(number(scores["psnr"].mean, "dB"), scores["psnr"], 1),
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

    several = len(results.prompts) * len(results.seeds) > 1
    dim = [
        words.setting(results),
        *filter(None, [words.machine(results)]),
        words.describe_floor(results),
        *words.not_measured(results),
        *words.gains(results),
        *words.best_dense(results),
    ]
    presets = [row.preset for row in results.summary]
    return [
        "",
        *(f"[dim]{plain_text(line)}[/dim]" for line in dim),
        *(f"{row.preset}: {row.sentence}" for row in results.summary if several),
        *map(plain_text, words.timing(results)),
        *words.too_short(results),
        *words.pairs(results, numbers=False),
        *words.fallbacks(results),
        *dict.fromkeys(sentence for clip in results.clips for sentence in clip.notes),
        f"report: {folder / 'index.html'}, beside it report.md, results.json, results.csv, "
        f"sheet.png, {', '.join(f'{name}{suffix}' for name in (DENSE, *presets))}",
    ]


def _density(row: PresetSummary) -> str:
    asked = row.asked_mean_density
    return f"{row.mean_density:.3f}" + ("" if asked is None else f" ({asked:g} asked)")


def _interval(text: str, summary: Summary, digits: int) -> str:
    from vidsparse.metrics.report.words import ends

    return f"{text} {ends(summary, digits)}".rstrip()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
