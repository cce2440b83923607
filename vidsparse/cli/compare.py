"""``vidsparse compare``: dense and sparse from the same seeds, and what it cost and saved."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidsparse.cli.clips import DENSE, SHEET, Case, Clips
from vidsparse.cli.clips import FOLDER as CLIPS
from vidsparse.cli.job import Job, Prompt, RunOptions, maybe_pool
from vidsparse.cli.options import Json, PresetChanges, option, ray_option, whole_numbers
from vidsparse.cli.screen import answer, answer_json, note
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.metrics.weights import Weights
    from vidsparse.preset import Preset


def compare(
    context: typer.Context,
    run: RunOptions,
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
    import vidsparse.metrics.report.write  # noqa: F401 what is missing is missed before the work
    from vidsparse.cli import fingerprint
    from vidsparse.cli.comparison import make_results, write_files
    from vidsparse.cli.comparison_table import footer, make_table
    from vidsparse.cli.finished import Finished
    from vidsparse.cli.work import CompareWork

    presets = read_presets(preset, changes)
    numbers = read_seeds(seeds, run.seed)
    job = replace(run, seed=numbers[0]).job(_prompts(prompt, prompts))
    presets = [job.effective(chosen) for chosen in presets]
    found = read_weights(weights or [])
    names = [DENSE, *(chosen.name for chosen in presets)]
    _check_folder(output, job, names, overwrite=overwrite)
    clips = Clips(output)
    with maybe_pool(ray, job) as pool, clips.locked():
        machine = partial(fingerprint.of_machine, job)
        finished = Finished(
            job=job,
            presets=presets,
            cases=make_cases(job, numbers),
            clips=clips,
            machine=pool.ask(machine) if pool else machine(),
            weights=found,
            wants_floor=noise_floor,
            wants_errors=attention_error,
            repeats=repeats,
        )
        CompareWork(finished).do(pool)
        results = make_results(finished, shlex.join(["vidsparse", *context.obj]))
        write_files(output, finished, results)
    if json:
        answer_json(results.model_dump(mode="json"))
        return
    answer(make_table(results))
    for line in footer(results, output, finished.dense_engines(), job.suffix):
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


def make_cases(job: Job, seeds: list[int]) -> list[Case]:
    """Every prompt with every seed."""
    return [
        Case(prompt_index=index, request=replace(request, seed=seed))
        for index, request in enumerate(job.requests)
        for seed in seeds
    ]


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


def _check_folder(folder: Path, job: Job, names: list[str], *, overwrite: bool) -> None:
    """Make sure that the report can be written, and that it replaces no file of something else."""
    from vidsparse.metrics.report.write import FILES
    from vidsparse.pipelines.running.video import check_writable

    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file: -o names the folder that compare writes to")
    videos = [f"{name}{job.suffix}" for name in names]
    taken = [name for name in (*videos, *FILES, SHEET) if (folder / name).exists()]
    if taken and not overwrite and not (folder / CLIPS).is_dir():
        raise BadInputError(
            f"{folder} holds {taken[0]}, and no comparison: give --overwrite to replace what is in "
            "the way, or another folder with -o"
        )
    for name in videos:
        check_writable(folder / name, image=job.checkpoint.image)
