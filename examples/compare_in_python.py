"""Dense and sparse from the same seeds, from Python or a notebook: what ``vidsparse compare`` does.

    python examples/compare_in_python.py

Any diffusers pipeline in memory will do, also one that is compiled, quantised or has a LoRA. A
second call goes on where the first one stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline

PROMPTS = [
    "a red circle moving right over a light blue striped background",
    "a yellow star moving up over a dark purple dotted background",
]


def compare(pipe: Any, out: Path, **video: Any) -> dict[str, tuple[float, float]]:
    """Compare two presets at one cost with each other and with dense.

    Args:
        pipe: A diffusers pipeline.
        out: Folder of the report.
        **video: Frames, size and steps.

    Returns:
        The median speed-up and the mean PSNR against dense of each preset.
    """
    made = vidsparse.compare(
        pipe, ["balanced", "random"], PROMPTS, seeds=[0], out=out, mean_density=0.4, **video
    )
    print(made)  # the verdict on each preset, and where the report is
    return {
        row.preset: (row.speedup.median, row.scores["psnr"].mean or float("inf"))
        for row in made.results.summary
    }


def main() -> None:
    video = {"frames": 25, "height": 160, "width": 160, "steps": 20, "guidance": 4.0}
    for preset, (speed, psnr) in compare(load_pipeline(), Path("compared"), **video).items():
        print(f"{preset}: {speed:.2f}x as fast as dense, {psnr:.1f} dB")


if __name__ == "__main__":
    main()
