"""What was measured of one clip: curves beside those of the other presets, and heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vidsparse.metrics.report import words
from vidsparse.metrics.report.charts import lines
from vidsparse.metrics.report.heat_map import heat_map
from vidsparse.metrics.report.results import Clip, Results

Legend = Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with what is to be said of it.

    Attributes:
        title: Above it.
        svg: Empty if there is nothing to draw.
        caption: Below it.
        legend: Numbers and names of the presets in it.
    """

    title: str
    svg: str
    caption: str
    legend: Legend = ()


def clip_charts(results: Results, clip: Clip) -> list[Chart]:
    """All charts of a clip that have something to show."""
    return [chart for chart in (*_curves(results, clip), *_maps(clip)) if chart.svg]


def _curves(results: Results, clip: Clip) -> Iterator[Chart]:
    rivals = [
        (at, row.preset, other)
        for at, row in enumerate(results.summary)
        for other in results.clips
        if other.preset == row.preset
        and (other.prompt_index, other.seed) == (clip.prompt_index, clip.seed)
    ]
    legend = [(at, name) for at, name, _ in rivals]
    own = next((at for at, name, _ in rivals if name == clip.preset), -1)
    identical = [f"{preset} is identical to dense" for _, preset, each in rivals if each.identical]
    for metric, name, unit in (("psnr", "PSNR", ", dB"), ("ssim", "SSIM", "")):
        curves = [(at, preset, each.curves.get(metric, [])) for at, preset, each in rivals]
        drawn = lines(curves, across="frame", up=name + unit, chosen=own)
        floor = [words.floor(results)] if metric == "psnr" else []
        caption = "; ".join([*identical, *floor])
        yield Chart(f"{name} of each frame", drawn, caption, legend)
    density = [(at, preset, words.step_density(each)) for at, preset, each in rivals]
    drawn = lines(density, across="denoising step", up="density", low=0.0, chosen=own)
    caption = (
        f"{clip.preset}: mean {clip.mean_density:.2f}, {clip.dense_steps_share:.0%} of the steps "
        "dense"
    )
    yield Chart("Density of each step", drawn, caption, legend)
    drift = [(at, preset, each.step_latent_error) for at, preset, each in rivals]
    drawn = lines(drift, across="denoising step", up="relative RMSE", low=0.0, chosen=own)
    yield Chart("Distance of the latents from dense", drawn, "after each step", legend)


def _maps(clip: Clip) -> Iterator[Chart]:
    errors = [value for row in clip.attention_error for value in row if value is not None]
    worst = max(errors, default=0.0)
    called = "1 is dense; grey where the layer was not called"
    error = "relative L1 against dense attention on the same input, sampled rows; grey where dense"
    for title, grid, across, high, caption in (
        ("Density by layer and step", clip.density, "step", 1.0, called),
        ("Density by layer and head", clip.head_density, "head", 1.0, "mean over sparse steps"),
        ("Error of attention by layer and step", clip.attention_error, "step", worst, error),
    ):
        if any(grid):
            drawn = heat_map(grid, across=across, up="layer", low=0.0, high=high, title=title)
            yield Chart(title, drawn, f"{clip.preset}; {caption}")
