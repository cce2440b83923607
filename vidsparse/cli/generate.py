"""``vidsparse generate``: a video or image from one prompt, or many from a file of prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidsparse.cli.generate_work import GenerateWork
from vidsparse.cli.options import Json, Overwrite, PresetChanges, check_free, option, ray_option
from vidsparse.cli.progress import Screen
from vidsparse.cli.run_options import Prompt, RunOptions
from vidsparse.cli.screen import answer_json, complain
from vidsparse.cli.stack_options import InputOptions, StackOptions
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.cli.finished_videos import FinishedVideos
    from vidsparse.comparison.job import Job
    from vidsparse.comparison.workers import Pool
    from vidsparse.preset import Preset


MOST_TEXT = 10_000_000
PRESET = "balanced"


def generate(
    run: RunOptions,
    given: InputOptions,
    stack: StackOptions,
    changes: PresetChanges,
    prompt: Prompt = None,
    preset: Annotated[
        str, option("A name of `vidsparse presets`, FILE.py:NAME, or FILE.toml.", panel="Sparsity")
    ] = PRESET,
    dense: Annotated[bool, option("No sparsity at all.", "--dense", panel="Sparsity")] = False,
    prompts: Annotated[
        Path | None,
        option("One prompt a line; -o is then a folder, and a rerun goes on there.", "--prompts"),
    ] = None,
    output: Annotated[
        Path | None,
        option("The file, .mp4, .webm or .npy, of an image .png or .npy.", "-o", "--output"),
    ] = None,
    overwrite: Overwrite = False,
    ray: Annotated[str | None, ray_option()] = None,
    json: Json = False,
) -> None:
    """Make a video or an image with sparse attention."""
    from vidsparse.comparison.workers import maybe_pool
    from vidsparse.pipelines.running.video import check_writable

    if prompts is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompts FILE, not both")
    if dense and (said := [*changes.given(), *(["--preset"] if preset != PRESET else [])]):
        raise BadInputError(
            f"--dense and {said[0]} cannot go together: a dense run has nothing to change"
        )
    chosen = None if dense else changes.preset(preset)
    job = run.job([prompt] if prompts is None else read_prompts(prompts), given, stack)
    chosen = chosen and job.effective(chosen)
    if prompts is None:
        paths = [output or Path(f"out{job.suffix}")]
    else:
        folder = output or Path("out")
        paths = [folder / f"{n:03d}{job.suffix}" for n in range(len(job.requests))]
    for path in paths:
        check_writable(path, image=job.checkpoint.image)
    if prompts is None:
        check_free(paths[0], overwrite=overwrite)
    with maybe_pool(ray, job.device, Screen()) as pool:
        finished = None
        if prompts is not None:
            finished = find_finished(job, chosen, paths, pool, overwrite=overwrite)
        work = GenerateWork(job, chosen, paths, finished, quiet=json)
        if prompts is None and pool is None:
            work.do_alone()
        else:
            work.do(pool)
    if json and (prompts is not None or work.made):
        answer_json(work.made[0] if prompts is None else work.to_json())
    if work.failed:
        complain(f"{len(work.failed)} of {len(paths)} prompts failed")
        raise typer.Exit(1)


def find_finished(
    job: Job, preset: Preset | None, paths: list[Path], pool: Pool | None, *, overwrite: bool
) -> FinishedVideos:
    """What a run before this one finished.

    Raises:
        BadInputError: When other files are in the way, unless they may be overwritten.
    """
    from vidsparse.cli.finished_videos import FinishedVideos
    from vidsparse.comparison import fingerprint

    machine = partial(fingerprint.of_machine, job)
    finished = FinishedVideos(job, preset, paths, pool.ask(machine) if pool else machine())
    if not overwrite:
        finished.check_free()
    return finished


def read_prompts(file: Path) -> list[str]:
    """Read the prompts of a file: blank lines and lines that start with # are skipped.

    Raises:
        BadInputError: When the file cannot be read or holds no prompt.
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(MOST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"cannot read the prompts of {file}: {error}") from error
    if len(text) > MOST_TEXT:
        raise BadInputError(f"{file} is longer than {MOST_TEXT:,} characters: no file of prompts")
    lines = [line.strip() for line in text.split("\n")]  # a prompt may hold any other separator
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise BadInputError(f"{file} holds no prompt: write one a line")
    return found
