"""``vidsparse plan``: what a preset would compute, without weights and without a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from vidsparse.cli.options import Json, PresetChanges, option
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid

if TYPE_CHECKING:
    from vidsparse.forecast import Forecast
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.pipelines.running.geometry import Geometry

GRID_STEPS = 50  # of a run when only a grid is given
ABOUT_MEMORY = (
    "memory is that of the transformer in {bits}: its weights, activations as in the one run "
    "whose peak was measured (Wan 2.1 14B on an H200), and what the preset keeps between calls"
)
IN_FP8 = "16 bits, weights of linear layers in FP8"


def plan(
    changes: PresetChanges,
    grid: Annotated[
        str | None, option("Tokens as FRAMESxHEIGHTxWIDTH, such as 21x45x80.", "--grid")
    ] = None,
    model: Annotated[
        str | None, option("A model folder or name, such as wan2.1-14b.", "--model")
    ] = None,
    size: Annotated[str | None, option("WIDTHxHEIGHT in pixels.", "--size")] = None,
    frames: Annotated[int | None, option("Frames of the video; 1 for images.", "--frames")] = None,
    preset: Annotated[
        str, option("A name of `vidsparse presets`, FILE.py:NAME, or FILE.toml.")
    ] = "balanced",
    steps: Annotated[
        int | None, option("Denoising steps; by default the model's, or 50.", "--steps")
    ] = None,
    gpu: Annotated[
        str | None,
        option("Predict the time of a run there: h200, h100, rtx4090, ...", "--gpu"),
    ] = None,
    compiled: Annotated[
        bool, option("Of a transformer whose blocks are compiled.", "--compiled")
    ] = False,
    quantize: Annotated[
        str | None,
        option(
            "Of a transformer whose linear layers are in fp8, as `vidsparse generate` has it.",
            "--quantize",
        ),
    ] = None,
    all: Annotated[
        bool, option("Every preset beside the others, to choose from.", "--all")
    ] = False,
    json: Json = False,
) -> None:
    """Say how much a preset computes on a grid, and how long a run takes."""
    from vidsparse.cli.plan_all import Run, plan_all, read_shapes
    from vidsparse.cli.plan_nearer import nearer_rung
    from vidsparse.cli.plan_stack import with_the_stack
    from vidsparse.pipelines.published import apply
    from vidsparse.pipelines.running.checkpoints import find_checkpoint
    from vidsparse.pipelines.running.quantized import check_word
    from vidsparse.pipelines.running.shapes import memory_of

    if (grid is None) == (model is None):
        raise BadInputError("give --grid, such as 21x45x80, or --model, such as wan2.1-14b")
    if grid is not None and (gpu is not None or compiled or quantize is not None):
        raise BadInputError(
            "--gpu, --compiled and --quantize need --model: a grid does not say how wide the "
            "layers are"
        )
    if quantize is not None:
        check_word(quantize)
    if grid is not None and (size is not None or frames is not None):
        raise BadInputError("--size and --frames belong to --model: a --grid is a size already")
    checkpoint = find_checkpoint(model) if model else _grid_checkpoint()
    tokens = TokenGrid.parse(grid) if grid else _model_grid(checkpoint, size, frames)
    number = checkpoint.or_default("steps", steps)
    run = Run(checkpoint, tokens, number, gpu, compiled, quantize)
    if all:
        plan_all(run, changes, preset, json=json)
        return
    chosen, said = apply(changes.preset(preset), checkpoint.release)
    found = run.forecast(chosen)
    shapes, why_none = read_shapes(run)
    times = shapes and run.predict(found, shapes)
    found = found.all_dense() if times and times.stays_dense else found
    fp8 = quantize is not None  # nothing else is predicted
    memory = None if times is None else memory_of(checkpoint, chosen, tokens, fp8=fp8)
    notes = [
        *([said] if said else []),
        *checkpoint.about_calls(number),
        *found.notes,
        *([] if grid else _about_text(checkpoint.geometry)),
        *(why_none if times is None else times.notes()),
        *(nearer_rung(run, chosen, shapes, times) if shapes and times else []),
        *(with_the_stack(run, chosen, found, shapes, times) if shapes and times else []),
        *([ABOUT_MEMORY.format(bits=IN_FP8 if fp8 else "16 bits")] if memory else []),
    ]
    text = {"text_tokens": tokens.prefix + tokens.suffix, "layers": checkpoint.layers}
    if json:
        told = {} if times is None else {"time": times.to_json()}
        told |= {} if memory is None else {"memory": memory.to_json()}
        answer_json(found.to_json() | text | told | {"notes": notes})
        return
    rows = [*(times.rows() if times else ()), *([memory.row()] if memory else ())]
    answer(_table(found, text, rows))
    for sentence in notes:
        note(sentence)


def _grid_checkpoint() -> Checkpoint:
    from vidsparse.pipelines.running.checkpoints import Checkpoint

    return Checkpoint(source="", steps=GRID_STEPS)


def _model_grid(checkpoint: Checkpoint, size: str | None, frames: int | None) -> TokenGrid:
    width, height = (None, None) if size is None else read_size(size)
    sizes = checkpoint.size(frames, height, width)
    return checkpoint.geometry.sequence(**sizes)


def _about_text(geometry: Geometry) -> list[str]:
    """What the grid assumes of the text in it."""
    if geometry.text is None:
        return ["the text in the sequence is left out: its length is not known without weights"]
    if geometry.text:
        return [
            f"the sequence has room for {geometry.text} text tokens, the most that the pipeline "
            "takes by default; they are always attended to in full"
        ]
    return []


def read_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT.

    Raises:
        BadInputError: When it is not that.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*x\s*([0-9]{1,9})\s*", text.lower())
    if found is None:
        raise BadInputError(f"cannot read the size {text!r}: write WIDTHxHEIGHT, such as 1280x720")
    return int(found[1]), int(found[2])


def _table(found: Forecast, more: dict[str, int | None], of_run: Sequence[tuple[str, str]]) -> Any:
    table = plain_table(preset="left", **{found.preset.name: "right"})
    facts = found.to_json()
    table.add_row("grid", facts["grid"])
    for name in ("tokens", "block", "blocks"):
        table.add_row(name, f"{facts[name]:,}")
    for name, number in more.items():
        if number:
            table.add_row(name.replace("_", " "), f"{number:,}")
    for name in ("token_density", "block_density"):
        table.add_row(f"{name.replace('_', ' ')} of the mask", f"{facts[name]:.3f}")
    if (asked := facts["asked_mean_density"]) is not None:
        table.add_row("mean density asked for", f"{asked:.3f}")
    table.add_row(f"mean density over {facts['steps']} steps", f"{found.mean_density:.3f}")
    table.add_row("steps that are dense", f"{found.dense_steps_share:.0%}")
    for name, value in of_run:
        table.add_row(name, value)
    return table
