"""The README's pictures and their numbers, of what ``make demo`` made.

    make demo && .venv/bin/python docs/demo_pictures.py demo

Writes docs/demo.png, docs/demo.webp, benchmarks/results/demo_cpu.json and the part of README.md
between the markers.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidsparse.errors import BadInputError
from vidsparse.metrics.report import words
from vidsparse.metrics.report.results import Clip, PresetSummary, Results, read_results

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("benchmarks/results/demo_cpu.json")
START = "<!-- python docs/demo_pictures.py: start -->"
END = "<!-- python docs/demo_pictures.py: end -->"
ONE = "One prompt says nothing of which preset is better."
HEADING, GAP, LARGEST = 20, 6, 2_000_000


def main(folder: Path) -> None:
    """Take everything over from the folder of a demo."""
    found = read_results(folder / "results.json")
    anywhere = {"model": "pipelines/tiny", "command": found.command.replace(str(folder), "demo")}
    results = found.model_copy(update=anywhere)
    (ROOT / RECORD).write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "sheet.png", ROOT / "docs/demo.png")
    moving_picture(folder, results, ROOT / "docs/demo.webp")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_demo(text, results), encoding="utf-8")


def moving_picture(folder: Path, results: Results, path: Path) -> None:
    """Dense beside the first preset, in a loop.

    Raises:
        BadInputError: When it is larger than 2 MB.
    """
    clip = results.clips[0]
    dense, sparse = (np.load(folder / clip.frames[name]) for name in ("dense", "sparse"))
    labels = f"dense, {clip.dense_seconds:.1f} s", f"{clip.preset}, {clip.seconds:.1f} s"
    frames = [
        _beside(labels, Image.fromarray(one), Image.fromarray(other))
        for one, other in zip(dense, sparse, strict=True)
    ]
    duration = round(1000 / results.video.fps)
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=80
    )
    if path.stat().st_size > LARGEST:
        raise BadInputError(f"{path} has {path.stat().st_size:,} bytes, more than {LARGEST:,}")


def _beside(labels: tuple[str, str], *images: Image.Image) -> Image.Image:
    width, height = images[0].size
    both = Image.new("RGB", (2 * width + GAP, height + HEADING), "white")
    draw, font = ImageDraw.Draw(both), ImageFont.load_default(size=14)
    for at, (label, image) in enumerate(zip(labels, images, strict=True)):
        left = at * (width + GAP)
        draw.text((left, 0), label, "black", font)
        both.paste(image, (left, HEADING))
    return both


def with_demo(text: str, results: Results) -> str:
    """The README with the demo between its markers.

    Raises:
        BadInputError: When a marker is missing.
    """
    before, found_start, rest = text.partition(START)
    _, found_end, after = rest.partition(END)
    if not found_start or not found_end:
        raise BadInputError(f"README.md has no {END if found_start else START!r}: put it back")
    return f"{before}{START}\n{section(results)}\n{END}{after}"


def section(results: Results) -> str:
    """The pictures, and under what conditions they hold."""
    video, first = results.video, results.clips[0]
    names = " and ".join(row.preset for row in results.summary)
    runs = len(first.all_seconds)
    how = "one run each" if runs == 1 else f"medians of {runs} runs each, in turn"
    rows = "; ".join(_of_preset(results, row) for row in results.summary)
    assert first.dense_time is not None
    share = first.dense_time.attention / first.dense_time.total
    said = (
        f"{video.frames} x {video.height} x {video.width} ({video.tokens:,} tokens), "
        f"{results.steps} steps, seed {first.seed}, {words.floor(results)}, on "
        f"{words.machine(results)}, {how}: dense "
        f"{first.dense_seconds:.1f} s, of which attention {share:.0%}; {rows} "
        f"([record]({RECORD})). {' '.join([*_doubts(results), ONE])}"
    )
    return (
        f"![dense above {names}](docs/demo.png)\n\n"
        f"![dense beside {first.preset}, moving](docs/demo.webp)\n\n*{said}*"
    )


def _of_preset(results: Results, row: PresetSummary) -> str:
    clip: Clip = next(each for each in results.clips if each.preset == row.preset)
    return (
        f"`{row.preset}` at mean density {row.mean_density:.2f}, {row.dense_steps_share:.0%} of "
        f"the steps dense, {clip.seconds:.1f} s ({row.speedup.median:.2f}x) and "
        f"{words.number(row.scores['psnr'].mean, 'dB PSNR')}"
    )


def _doubts(results: Results) -> list[str]:
    return [f"{row.preset}, in doubt: {line}." for row in results.summary
            for line in row.timing]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
