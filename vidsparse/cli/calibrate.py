"""``vidsparse calibrate``: what a method chooses offline, written to a preset file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vidsparse.cli.compare import read_seeds
from vidsparse.cli.options import Json, Overwrite, PresetChanges, option
from vidsparse.cli.progress import Screen
from vidsparse.cli.run_options import Prompt, RunOptions
from vidsparse.cli.screen import answer, answer_json
from vidsparse.cli.stack_options import InputOptions, StackOptions

METHOD = (
    "A preset that chooses something offline: sta, svg, lite, lite-attention, paro, sparse-vdit, "
    "mminference or vorta."
)


def calibrate(
    context: typer.Context,
    run: RunOptions,
    given: InputOptions,
    stack: StackOptions,
    changes: PresetChanges,
    method: Annotated[str, typer.Argument(help=METHOD)],
    prompt: Prompt = None,
    prompts: Annotated[
        Path | None, option("One prompt a line, instead of PROMPT; one or two are enough.")
    ] = None,
    seeds: Annotated[str | None, option("Such as 0,1: every prompt with each.")] = None,
    error: Annotated[
        float | None,
        option(
            "Relative L1 of each layer's output at most, where margins are found; by default 0.05.",
            panel="Method",
        ),
    ] = None,
    store_masks: Annotated[
        bool | None,
        option(
            "Also keep the masks of all heads in a file beside it, as paro does by default.",
            "--store-masks/--no-store-masks",
            panel="Method",
        ),
    ] = None,
    output: Annotated[Path, option("The preset file.", "-o", "--output")] = Path("calibrated.toml"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Find what a method chooses offline in dense runs, and write it to a preset file."""
    from vidsparse.calibrating.asked import Asked
    from vidsparse.calibrating.calibrate import run_calibration
    from vidsparse.cli.generate import read_prompts
    from vidsparse.comparison.spec import Spec
    from vidsparse.errors import BadInputError

    if prompts is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    asked = Asked.of(changes.preset(method), error, store_masks)
    numbers = read_seeds(seeds, run.seed)
    texts = [prompt] if prompts is None else list(dict.fromkeys(read_prompts(prompts)))
    job = replace(run, seed=numbers[0]).job(texts, given, stack)
    spec = Spec(job=job, presets=[job.effective(asked.preset)], seeds=numbers)
    command = shlex.join(["vidsparse", *context.obj])
    found = run_calibration(
        spec, asked, output, command=command, reporter=Screen(), overwrite=overwrite
    )
    if json:
        answer_json(found.to_json())
    else:
        answer(f"{found.sentence}\n[bold]{found.path}[/bold]")
