"""What ``vidsparse plan`` says of another rung that takes no longer and is nearer to dense."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsparse.cli.plan_all import Run
    from vidsparse.preset import Preset
    from vidsparse.run_time import RunTimes
    from vidsparse.step_time import Shapes

# dB PSNR against dense, of the pipeline that ships at 13,312 tokens: README.md says how measured
PSNR = {"quality": 38.8, "semantic": 33.8, "balanced": 28.2, "fast": 25.1, "turbo": 20.8}
AS_LONG = 1.03  # times as long is no longer: predictions are no finer
LONG = 65_536  # tokens: rungs were timed side by side on Wan 14B alone, at 75,600 without text


def nearer_rung(run: Run, preset: Preset, shapes: Shapes, times: RunTimes) -> list[str]:
    """A sentence on the rung that is nearest to dense of those that take as long as this one.

    Empty where the preset is no rung as it comes, where none is nearer, and where rungs were not
    timed side by side: short sequences, text among the tokens, heads of fewer than 128 numbers,
    GPUs that run clusters on another kernel.

    Args:
        run: What is planned.
        preset: As it would run on the model.
        shapes: What it works on.
        times: Of the run as it is planned.
    """
    from vidsparse.policies.block_size import WIDE
    from vidsparse.presets import PRESETS
    from vidsparse.run_time import minutes

    own = PSNR.get(preset.name)
    text = run.grid.prefix + run.grid.suffix
    timed = run.grid.tokens >= LONG and not text and shapes.head_dim >= WIDE
    if own is None or preset != PRESETS[preset.name] or not timed or times.gain <= 1:
        return []
    for name, psnr in sorted(PSNR.items(), key=lambda rung: -rung[1]):
        if psnr <= own:
            return []
        other = run.predict(run.forecast(PRESETS[name]), shapes)
        if not other.unpriced and other.sparse <= AS_LONG * times.sparse:
            return [
                f"{name} takes {minutes(other.sparse)} ({other.gain:.2f}x) and is nearer to dense: "
                f"{psnr} dB PSNR for {own} on the pipeline that ships"
            ]
    return []
