"""``vidsparse tune``: the cheapest preset that meets a target, written to a preset file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse.cli.compare import read_presets, read_seeds, read_weights
from vidsparse.cli.options import Json, Overwrite, PresetChanges, option
from vidsparse.cli.progress import Screen
from vidsparse.cli.run_options import Prompt, RunOptions
from vidsparse.cli.screen import answer, answer_json, complain, plain_table

if TYPE_CHECKING:
    from vidsparse.budgets import Budgets


def tune(
    context: typer.Context,
    run: RunOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    prompts: Annotated[
        Path | None, option("One prompt a line, instead of PROMPT; two or three are enough.")
    ] = None,
    seeds: Annotated[str | None, option("Such as 0,1: every prompt with each.")] = None,
    target_psnr: Annotated[
        float | None, option("In dB against dense, at least.", panel="Target")
    ] = None,
    target_lpips: Annotated[
        float | None, option("Against dense, at most; needs --weights.", panel="Target")
    ] = None,
    target_seconds: Annotated[
        float | None, option("Of a run, at most: the best that is in time.", panel="Target")
    ] = None,
    preset: Annotated[
        str, option("Where to start, with commas between.", panel="Sparsity")
    ] = "balanced,semantic",
    weights: Annotated[
        list[str] | None, option("KEY=PATH, such as lpips_alex=FILE; repeatable.", panel="Target")
    ] = None,
    output: Annotated[
        Path, option("The preset file; what was run is kept beside it.", "-o", "--output")
    ] = Path("tuned.toml"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Find the cheapest preset that meets a target on your prompts, and write it to a file."""
    from vidsparse.cli.generate import read_prompts
    from vidsparse.comparison.spec import Spec
    from vidsparse.errors import BadInputError
    from vidsparse.presets import under_base
    from vidsparse.tuning.tune import read_target, run_tuning

    target = read_target(target_psnr, target_lpips, target_seconds)
    if prompts is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    chosen = [under_base(each) for each in read_presets(preset, changes)]
    numbers = read_seeds(seeds, run.seed)
    texts = [prompt] if prompts is None else list(dict.fromkeys(read_prompts(prompts)))
    job = replace(run, seed=numbers[0]).job(texts)
    spec = Spec(
        job=job,
        presets=[job.effective(each) for each in chosen],
        seeds=numbers,
        weights=read_weights(weights or []),
    )
    command = shlex.join(["vidsparse", *context.obj])
    found = run_tuning(
        spec, target, output, command=command, reporter=Screen(), overwrite=overwrite
    )
    if json:
        answer_json(found.to_json())
    else:
        answer(_table(found.tried))
        answer(f"{found.sentence}\n[bold]{found.path}[/bold]")
    if not found.met:
        complain(found.sentence)
        raise typer.Exit(1)


def _table(tried: list[Any]) -> Any:
    table = plain_table(
        preset="left", mean_density="right", error="right", seconds="right",
        times_dense="right", changed="left",
    )  # fmt: skip
    for trial in tried:
        schedule = trial.preset.schedule
        shared = [f"ramp_until {schedule.ramp_until:g}"]
        shared += [f"cooldown {schedule.cooldown:g}"] if schedule.cooldown else []
        shared += [f"{schedule.dense_layers} dense layers"] if schedule.dense_layers else []
        shared += [_by_error(schedule.budgets)] if schedule.budgets else []
        table.add_row(
            trial.preset.name, f"{trial.density:.3f}", f"{abs(trial.error):.3f}",
            f"{trial.seconds:.2f}", f"{trial.gain:.2f}x", ", ".join(shared),
        )  # fmt: skip
    return table


def _by_error(budgets: Budgets) -> str:
    each = "heads" if any(len(found) > 1 for _, found in budgets.layers) else "layers"
    return f"{each} by error"
