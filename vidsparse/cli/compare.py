"""``vidsparse compare``: dense and sparse from the same seeds, and what it cost and saved."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidsparse.cli.options import Json, PresetChanges, option, ray_option, whole_numbers
from vidsparse.cli.progress import Screen
from vidsparse.cli.run_options import Prompt, RunOptions
from vidsparse.cli.screen import answer, answer_json, note
from vidsparse.cli.stack_options import InputOptions, StackOptions
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.metrics.weights import Weights
    from vidsparse.preset import Preset


def compare(
    context: typer.Context,
    run: RunOptions,
    given: InputOptions,
    stack: StackOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    prompts: Annotated[
        Path | None, option("One prompt a line, instead of PROMPT.", "--prompts", panel="Clips")
    ] = None,
    seeds: Annotated[
        str | None, option("Such as 0,1: every prompt with each.", panel="Clips")
    ] = None,
    preset: Annotated[
        str, option("With commas between, such as draft,radial,my.py:mine.", panel="Sparsity")
    ] = "balanced",
    output: Annotated[
        Path, option("Folder of the report; a rerun goes on where it stopped.", "-o", "--output")
    ] = Path("compare"),
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=1,
            max=99,
            help="Time each generation so often, dense and sparse in turns.",
        ),
    ] = 1,
    noise_floor: Annotated[
        bool, option("Also compare dense with dense by another engine.", "--noise-floor")
    ] = False,
    attention_error: Annotated[
        bool,
        option(
            "Also measure every attention call of the first clip, in one more run of each preset.",
            "--attention-error",
        ),
    ] = False,
    weights: Annotated[
        list[str] | None,
        option("KEY=PATH: local weights of a learned metric, such as lpips_alex; repeatable."),
    ] = None,
    overwrite: Annotated[
        bool, option("Write to a folder that holds files of something else.", "--overwrite")
    ] = False,
    ray: Annotated[str | None, ray_option()] = None,
    json: Json = False,
) -> None:
    """Make dense and sparse videos from the same seeds, and report what it cost and saved."""
    from vidsparse.cli.comparison_table import footer, make_table
    from vidsparse.cli.on_a_gpu import on_a_gpu
    from vidsparse.comparison.run import run_comparison
    from vidsparse.comparison.spec import Spec

    presets = read_presets(preset, changes)
    numbers = read_seeds(seeds, run.seed)
    job = replace(run, seed=numbers[0]).job(_prompts(prompt, prompts), given, stack)
    spec = Spec(
        job=job,
        presets=[job.effective(chosen) for chosen in presets],
        seeds=numbers,
        weights=read_weights(weights or []),
        wants_floor=noise_floor,
        wants_errors=attention_error,
        repeats=repeats,
    )
    command = shlex.join(["vidsparse", *context.obj])
    found = run_comparison(
        spec, output, command=command, reporter=Screen(), ray=ray, overwrite=overwrite
    )
    if json:
        answer_json(found.results.model_dump(mode="json"))
        return
    answer(make_table(found.results))
    *said, where = footer(found.results, output, job.suffix)
    for line in (*said, *on_a_gpu(found.results, spec.presets), where):
        answer(line)


def read_presets(text: str, changes: PresetChanges) -> list[Preset]:
    """Read names with commas between.

    Raises:
        BadInputError: When there is none, one twice, or one that is unknown.
    """
    presets = [changes.preset(name.strip()) for name in text.split(",") if name.strip()]
    if not presets or len({chosen.name for chosen in presets}) < len(presets):
        raise BadInputError(f"--preset takes different names with commas between, got {text!r}")
    return presets


def read_seeds(text: str | None, seed: int) -> list[int]:
    """Read seeds with commas between; ``seed`` when there is no text.

    Raises:
        BadInputError: When it is something else, a seed stands twice, or --seed was given too.
    """
    if text is None:
        return [seed]
    numbers = whole_numbers("--seeds", text)
    if len(set(numbers)) < len(numbers):
        raise BadInputError(f"--seeds takes different numbers with commas between, got {text!r}")
    if seed:
        raise BadInputError(f"give --seed {seed} or --seeds {text}, not both")
    return numbers


def read_weights(pairs: list[str]) -> Weights | None:
    """Read KEY=PATH, and make sure that the networks can be loaded.

    Raises:
        BadInputError: For an unknown key, or a file that does not fit.
    """
    from vidsparse.metrics.scores import Scorer
    from vidsparse.metrics.weights import NEEDED, Weights
    from vidsparse.preset import suggest

    paths: dict[str, Path] = {}
    for pair in pairs:
        key, _, path = pair.partition("=")
        if key not in NEEDED:
            raise BadInputError(f"--weights has no key {key!r}: {suggest(key, NEEDED)}")
        if not path:
            raise BadInputError(f"--weights {pair!r} must be KEY=PATH: {key} is {NEEDED[key]}")
        paths[key] = Path(path).expanduser()
    if not paths:
        return None
    weights = Weights(**paths)
    Scorer(weights)
    return weights


def _prompts(prompt: str | None, file: Path | None) -> list[str | None]:
    from vidsparse.cli.generate import read_prompts

    if file is None:
        return [prompt]
    if prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    found = read_prompts(file)
    different: list[str | None] = [*dict.fromkeys(found)]
    if len(different) < len(found):
        note(f"{file}: {len(found) - len(different)} prompts stand there twice, and count once")
    return different
