"""What a GPU would gain where a CPU was tried: one line under a comparison of the shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import Results
    from vidsparse.preset import Preset

MODEL = "wan2.1-14b"


def on_a_gpu(results: Results, presets: Sequence[Preset]) -> list[str]:
    """The predicted gain of presets on the model that the shipped one is built like.

    Args:
        results: Of a comparison; there is a line if it ran the shipped model on a CPU.
        presets: Of it.
    """
    from vidsparse.errors import BadInputError
    from vidsparse.forecast import forecast
    from vidsparse.gpus import MEASURED
    from vidsparse.pipelines.published import apply
    from vidsparse.pipelines.running.checkpoints import TINY, find_checkpoint
    from vidsparse.pipelines.running.shapes import shapes_of
    from vidsparse.run_time import minutes, predict

    if results.gpu is not None or results.model != str(TINY):
        return []
    checkpoint = find_checkpoint(MODEL)
    size = checkpoint.size(None, None, None)
    grid = checkpoint.geometry.sequence(**size)
    shapes, steps = shapes_of(checkpoint, grid), checkpoint.or_default("steps", None)
    times = []
    for preset in presets:
        chosen, _ = apply(preset, checkpoint.release)
        try:
            found = forecast(chosen, grid, steps, checkpoint.layers, checkpoint.head_dim)
        except BadInputError:  # what it computes depends on what it sees: nothing is predicted
            continue
        times.append(predict(found, shapes, MEASURED))
    if not times:
        return []
    dense = minutes(times[0].steps * times[0].dense.seconds)
    gains = ", ".join(f"{minutes(t.sparse)} with {t.preset} ({t.gain:.2f}x)" for t in times)
    return [
        f"on a GPU: {MODEL} at {size['width']}x{size['height']} x {size['frames']} frames "
        f"({grid.tokens:,} tokens) is predicted to take {dense} dense on an {times[0].gpu.label}, "
        f"{gains} (vidsparse plan --model {MODEL})"
    ]
