"""What must hold between the fields of results, beyond the type of each."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import Clip, Results

GRIDS = ("density", "head_density", "attention_error")


def check_clip(clip: Clip) -> None:
    """Refuse grids with holes at the ends of rows, and frames outside the folder.

    Raises:
        ValueError: With what is wrong, as pydantic wants it.
    """
    for name in GRIDS:
        if len({len(row) for row in getattr(clip, name)}) > 1:
            raise ValueError(f"the rows of {name} differ in length")
    if len(clip.frames) != 2:
        raise ValueError("frames needs both dense and sparse")
    for path in map(PurePosixPath, clip.frames.values()):
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the frames {path} must lie in the folder of the report")


def check_results(results: Results) -> None:
    """Refuse clips of presets or prompts that are not there, and curves of other lengths.

    Raises:
        ValueError: With what is wrong, as pydantic wants it.
    """
    names = {preset.name for preset in results.presets}
    for row in (*results.clips, *results.summary):
        if row.preset not in names:
            raise ValueError(f"preset {row.preset} is not among {', '.join(sorted(names))}")
    for row in results.summary:
        if "psnr" not in row.scores:
            raise ValueError(f"the summary of {row.preset} has no psnr")
    for clip in results.clips:
        if clip.prompt_index >= len(results.prompts):
            raise ValueError(f"prompt_index {clip.prompt_index} has no prompt")
        for name, curve in clip.curves.items():
            if len(curve) != results.video.frames:
                raise ValueError(
                    f"curve {name} has {len(curve)} values for {results.video.frames} frames"
                )
