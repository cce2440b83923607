"""``vidsparse inspect``: what a preset computes, beside the true attention mass, as pictures."""

from __future__ import annotations

import json as js
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vidsparse
from vidsparse.cli.options import (
    Json,
    Overwrite,
    PresetChanges,
    check_free,
    option,
    whole_numbers,
)
from vidsparse.cli.progress import Screen
from vidsparse.cli.run_options import Prompt, RunOptions
from vidsparse.cli.screen import answer, answer_json, note, plain_table, step_bar
from vidsparse.cli.stack_options import InputOptions
from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.progress import Progress

if TYPE_CHECKING:
    from vidsparse.cli.inspected import Inspector
    from vidsparse.comparison.job import Job
    from vidsparse.preset import Preset


def inspect(
    context: typer.Context,
    run: RunOptions,
    given: InputOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    preset: Annotated[
        str, option("A name of `vidsparse presets`, FILE.py:NAME, or FILE.toml.", panel="Sparsity")
    ] = "balanced",
    layers: Annotated[
        str | None, option("Such as 0,5; by default first, middle and last.", panel="Pictures")
    ] = None,
    at_steps: Annotated[
        str | None,
        option("Steps to draw, such as 3,10; by default middle and last.", panel="Pictures"),
    ] = None,
    heads: Annotated[str, option("Such as 0,1.", panel="Pictures")] = "0,1",
    output: Annotated[
        Path, option("Folder for the pictures and inspect.json.", "-o", "--output")
    ] = Path("inspect"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw the blocks that a preset computes beside the true attention mass, in one run."""
    from vidsparse.cli.inspected import Inspector
    from vidsparse.pipelines.running.video import check_writable

    chosen = changes.preset(preset)
    job = run.job([prompt], given)
    chosen = job.effective(chosen)
    total = job.requests[0].steps
    drawn_steps = read_numbers("--at-steps", at_steps, total) or [total // 2, total - 1]
    drawn_layers = read_numbers("--layers", layers, job.checkpoint.layers)
    drawn_heads = read_numbers("--heads", heads, None)
    _check_sparse(job, chosen, drawn_steps, drawn_layers or [total])
    check_free(output / "inspect.json", overwrite=overwrite)
    check_writable(output / "inspect.mp4")
    with Screen().loading(str(job.checkpoint.source)):
        pipe = job.load()
    number, of_heads = _layers_and_heads(pipe)
    drawn_layers = drawn_layers or sorted({0, number // 2, number - 1})
    check_numbers("--layers", drawn_layers, number)
    check_numbers("--heads", drawn_heads, of_heads)
    inspector = Inspector(layers=drawn_layers, steps=drawn_steps, heads=drawn_heads)
    fallbacks = _observe(pipe, job, chosen, inspector)
    if not inspector.seen:
        raise BadInputError(
            f"every call that was to be drawn ran dense ({fallbacks}): choose other layers or steps"
        )
    record = _record(pipe, job, chosen, inspector, shlex.join(["vidsparse", *context.obj]))
    _write(output, job, chosen, inspector, record)
    if json:
        answer_json(record)
        return
    answer(_table(record))
    answer(f"\n{output}: {', '.join(seen.file for seen in inspector.seen.values())}, inspect.json")


def read_numbers(name: str, text: str | None, below: int | None) -> list[int]:
    """Read numbers with commas between; none of no text.

    Raises:
        BadInputError: When it is something else, or a number is out of range.
    """
    if text is None:
        return []
    numbers = sorted(set(whole_numbers(name, text)))
    check_numbers(name, numbers, below)
    return numbers


def check_numbers(name: str, numbers: list[int], below: int | None) -> None:
    """Raise BadInputError, naming what is possible, when a number is too large."""
    if below is not None and max(numbers, default=0) >= below:
        raise BadInputError(f"{name} takes 0 to {below - 1} here, got {max(numbers)}")


def _check_sparse(job: Job, preset: Preset, steps: list[int], layers: list[int]) -> None:
    """Say before weights load when everything that was asked for will run dense."""
    request = job.requests[0]
    grid = job.checkpoint.geometry.sequence(request.frames, request.height, request.width)
    if preset.policy.any_density == 1.0:
        raise BadInputError(f"{preset.name} at density 1 is dense: there is no plan to draw")
    if grid.tokens < preset.least_tokens:
        raise BadInputError(
            f"{grid.tokens:,} tokens are too few to be sparse (min_tokens is "
            f"{preset.least_tokens:,}): draw them with --set min_tokens=0"
        )
    run = list(Progress.first(request.steps).steps())
    if not any(preset.schedule.way(run[s], layer) > 0 for s in steps for layer in layers):
        sparse = [s for s, way in enumerate(preset.schedule.ways(run[0])) if way > 0]
        way_out = (
            f"steps {sparse[0]} to {sparse[-1]} are sparse from layer "
            f"{preset.schedule.dense_layers} on"
            if sparse
            else "no step is sparse"
        )
        kept = ", ".join(map(str, dict.fromkeys(steps)))
        raise BadInputError(
            f"the schedule of {preset.name} keeps steps {kept} dense in these layers: {way_out}"
        )


def _layers_and_heads(pipe: Any) -> tuple[int, int]:
    from vidsparse.pipelines.running.stage_timing import self_attention

    layers = list(self_attention(pipe))
    experts = 1 if pipe.components.get("transformer_2") is None else 2
    return len(layers) // experts, layers[0].heads


def _observe(pipe: Any, job: Job, preset: Preset, inspector: Inspector) -> str:
    """Run once; return what fell back to dense."""
    from vidsparse.pipelines.running.generate import generate

    request = job.requests[0]
    with vidsparse.sparsify(pipe, preset, strict=job.strict) as session:
        session.observe(inspector)
        stats = session.stats
        with step_bar(preset.name, request.steps, stats) as on_step:
            generate(pipe, request, on_step)
        for sentence in stats.notes:
            note(sentence)
        return stats.describe_fallbacks()


def _record(
    pipe: Any, job: Job, preset: Preset, inspector: Inspector, command: str
) -> dict[str, Any]:
    from vidsparse.comparison.attention_error import ROWS
    from vidsparse.pipelines.running.checkpoints import geometry_of
    from vidsparse.versions import versions

    request = job.requests[0]
    grid = geometry_of(pipe).token_grid(request.frames, request.height, request.width)
    names = ("prompt", "seed", "steps", "guidance", "frames", "height", "width")
    return {
        "command": command,
        "model": str(job.checkpoint.source),
        **{name: getattr(request, name) for name in names},
        "grid": str(grid),
        "tokens": grid.tokens,
        "device": job.device,
        "dtype": job.dtype,
        "versions": versions(),
        "preset": preset.name,
        "parameters": preset.plain_parameters(),
        "sampled_rows": ROWS,
        "pictures": [seen.to_json() for seen in inspector.seen.values()],
        "calls": inspector.calls_to_json(),
    }


def _write(
    folder: Path, job: Job, preset: Preset, inspector: Inspector, record: dict[str, Any]
) -> None:
    """Write a picture for each call and inspect.json."""
    from vidsparse.cli.plan_picture import draw_call

    for seen in inspector.seen.values():
        call = seen.call
        title = f"{preset.name}: layer {call.layer}, step {call.step} of {record['steps']}"
        noise = "" if call.sigma is None else f"noise level {call.sigma:.2f}, "
        subtitle = (
            f"{noise}guidance branch {call.branch}, {record['tokens']:,} tokens ({record['grid']}),"
            f" seed {record['seed']}"
        )
        picture = draw_call(title, subtitle, seen.maps)
        replace_file(folder / seen.file, lambda part, p=picture: p.save(part, format="PNG"))
    text = js.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    replace_file(folder / "inspect.json", lambda part: part.write_text(text, encoding="utf-8"))


def _table(record: dict[str, Any]) -> Any:
    """One row for each picture, means over its heads."""
    measures = ("density", "recall", "relative_l1", "cosine")
    table = plain_table(**dict.fromkeys(("layer", "step", "noise", *measures), "right"))
    for row in record["pictures"]:
        means = [sum(head[name] for head in row["heads"]) / len(row["heads"]) for name in measures]
        sigma = "" if row["sigma"] is None else f"{row['sigma']:.2f}"
        table.add_row(str(row["layer"]), str(row["step"]), sigma, *(f"{x:.4f}" for x in means))
    return table
