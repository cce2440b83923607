"""What ``vidsparse plan`` says of the rest of the stack: how long a run takes with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.cli.plan_all import Run
    from vidsparse.forecast import Forecast
    from vidsparse.preset import Preset
    from vidsparse.run_time import RunTimes
    from vidsparse.step_time import Shapes

EIGHT = "--quantize fp8 --precision int8"


def with_the_stack(
    run: Run, preset: Preset, found: Forecast, shapes: Shapes, times: RunTimes
) -> list[str]:
    """A sentence on compiled blocks, and on eight bits besides where the GPU and preset have them.

    Empty where the run is planned with some of it, or gains nothing from being sparse.

    Args:
        run: What is planned.
        preset: As it would run on the model.
        found: What it computes.
        shapes: What it works on.
        times: Of the run as it is planned.
    """
    if run.compiled or run.quantize or times.stays_dense or times.gain <= 1:
        return []
    compiled = replace(run, compiled=True)
    said = f"with --compile the run takes {_times(compiled.predict(found, shapes))}"
    eight = _in_eight_bits(replace(compiled, quantize="fp8"), preset, shapes)
    if eight is not None:
        said += f", with {EIGHT} besides {_times(eight)}; vidsparse compare says what that costs"
    return [said]


def _in_eight_bits(run: Run, preset: Preset, shapes: Shapes) -> RunTimes | None:
    """The run with linear layers and attention in eight bits; None where it cannot be, or is."""
    try:
        found = run.forecast(preset.override({"precision": "int8"}))
        return run.predict(found, shapes)
    except BadInputError:  # a GPU without FP8, or clusters on one that is no Hopper
        return None


def _times(times: RunTimes) -> str:
    from vidsparse.run_time import minutes

    return f"{minutes(times.sparse)} ({times.over_stock:.2f}x)"
