"""A comparison on a pipeline in memory, asked for in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vidsparse.comparison.job import Job, make_request
from vidsparse.comparison.models import LoadedModel
from vidsparse.comparison.spec import DENSE, Spec
from vidsparse.errors import BadInputError
from vidsparse.metrics.scores import Scorer
from vidsparse.metrics.weights import Weights
from vidsparse.pipelines.running.geometry import transformer_of
from vidsparse.pipelines.running.given import rate_from
from vidsparse.pipelines.running.pictures import look_at_all
from vidsparse.pipelines.session import session_of
from vidsparse.preset import Preset
from vidsparse.presets import find_preset

PROGRESS_BAR = (
    "_progress_bar_config"  # what generating sets on a pipeline, and diffusers has no door to
)


def spec_of(
    pipe: Any,
    presets: str | Preset | Sequence[str | Preset],
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    *,
    video: Mapping[str, Any],
    inputs: Mapping[str, str | Path | Sequence[str | Path]] = MappingProxyType({}),
    fps: float | None = None,
    strict: bool = False,
    parameters: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    wants_floor: bool = False,
    wants_errors: bool = False,
    repeats: int = 1,
) -> Spec:
    """Check what is to be compared, and put it together.

    Args:
        pipe: A diffusers pipeline, without a session.
        presets: Names, or presets of your own.
        prompts: What the videos show.
        seeds: Of the noise.
        video: ``frames``, ``height``, ``width``, ``steps``, ``guidance``, ``negative_prompt`` and
            ``strength``; what is None is as the inputs have it, or the model's authors recommend.
        inputs: Files that the pipeline is given, by what they are to it.
        fps: Frames per second of the files.
        strict: Whether to fail where a call would fall back to dense.
        parameters: Of every preset to change.
        weights: Of learned metrics.
        wants_floor: Whether to compare dense with dense by another engine.
        wants_errors: Whether to measure the error of attention calls.
        repeats: How often each generation is timed.

    Raises:
        BadInputError: For a pipeline that is none or has a session, an unknown preset or
            parameter, no prompt, a seed that comes twice, weights that do not fit, or what the
            model cannot do.
    """
    check_pipe(pipe)
    model = LoadedModel(pipe)
    checkpoint = model.checkpoint()
    texts, numbers = read_prompts(prompts), read_seeds(seeds)
    files = look_at_all(inputs)
    if not isinstance(repeats, int) or repeats < 1:
        raise BadInputError(f"repeats must be a whole number from 1 on, got {repeats!r}")
    if weights is not None:
        Scorer(weights)  # what cannot be loaded is refused before the work
    rate = checkpoint.or_default("fps", rate_from(checkpoint, files) if fps is None else fps)
    job = Job(
        model=model,
        checkpoint=checkpoint,
        device=str(getattr(pipe, "_execution_device", pipe.device)),
        dtype=str(transformer_of(pipe).dtype).removeprefix("torch."),
        fps=rate,
        requests=[
            make_request(checkpoint, text, seed=numbers[0], fps=rate, inputs=files, **video)
            for text in texts
        ],
        strict=strict,
    )
    return Spec(
        job=job,
        presets=[job.effective(each) for each in read_presets(presets, parameters or {})],
        seeds=numbers,
        weights=weights,
        wants_floor=wants_floor,
        wants_errors=wants_errors,
        repeats=repeats,
    )


def check_pipe(pipe: Any) -> None:
    """Make sure that dense clips of a pipeline would be dense.

    Raises:
        BadInputError: When it is no pipeline, or has a session.
    """
    if isinstance(pipe, torch.nn.Module) or not callable(pipe) or not hasattr(pipe, "components"):
        raise BadInputError(f"compare needs a diffusers pipeline, got {type(pipe).__name__}")
    if session_of(pipe) is not None:
        raise BadInputError(
            "this pipeline has a vidsparse session, so it would make no dense clip to compare "
            "with: remove() it first (vidsparse.session_of finds it), or leave its with block"
        )


def read_presets(
    given: str | Preset | Sequence[str | Preset], parameters: Mapping[str, Any]
) -> list[Preset]:
    """Find presets by their names and change them.

    Raises:
        BadInputError: When there is none, one twice, one that is unknown or cannot name a file.
    """
    several = [given] if isinstance(given, str | Preset) else list(given)
    found = [find_preset(each) if isinstance(each, str) else each for each in several]
    names = [preset.name for preset in found]
    if not names or len(set(names)) < len(names):
        raise BadInputError(f"presets takes presets of different names, one at least, got {names}")
    for name in names:
        if name == DENSE or not re.fullmatch(r"\w[\w +-]*", name):
            raise BadInputError(
                f"a preset named {name!r} cannot be compared, since its files are named after it: "
                "name it with letters, digits, spaces, + and -, and not 'dense'"
            )
    return [preset.override(dict(parameters)) for preset in found]


def read_prompts(given: str | Sequence[str]) -> list[str]:
    """Take one prompt or several; one that stands there twice counts once.

    Raises:
        BadInputError: When there is none.
    """
    found = list(dict.fromkeys([given] if isinstance(given, str) else given))
    if not found:
        raise BadInputError("prompts is empty: give one prompt at least")
    return found


def read_seeds(given: int | Sequence[int]) -> list[int]:
    """Take one seed or several.

    Raises:
        BadInputError: When there is none, one comes twice, or one is no whole number.
    """
    found = [given] if isinstance(given, int) else list(given)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in found)
    if not found or not whole or len(set(found)) < len(found):
        raise BadInputError(f"seeds takes different whole numbers, one at least, got {given!r}")
    return found


def describe_call(
    spec: Spec, given: Mapping[str, Any], name: str = "compare", method: str | None = None
) -> str:
    """The call in Python, for the report; what was left out is left out.

    Args:
        spec: What was asked for.
        given: The other arguments.
        name: Of the function.
        method: The one preset of a function that takes no more.
    """
    changed = {k: v for k, v in given.items() if v is not None and v is not False}
    said = {
        **({"presets": [p.name for p in spec.presets]} if method is None else {"method": method}),
        "prompts": [request.prompt for request in spec.job.requests],
        "seeds": list(spec.seeds),
        **changed,
    }
    return f"vidsparse.{name}(pipe, {', '.join(f'{k}={v!r}' for k, v in said.items())})"


@contextmanager
def as_it_was(pipe: Any) -> Iterator[None]:
    """Give a pipeline back with the progress bar that it came with."""
    before = getattr(pipe, PROGRESS_BAR, None)
    try:
        yield
    finally:
        if before is None:
            vars(pipe).pop(PROGRESS_BAR, None)
        else:
            setattr(pipe, PROGRESS_BAR, before)
