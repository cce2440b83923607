"""What a comparison found: the schema of results.json, checked when it is written and when read.

Everything a report shows is here, with what is needed to repeat it. JSON has no infinity: a score
of ``null`` is infinite, because the clip equals its reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from vidsparse.errors import BadInputError
from vidsparse.metrics.latency import Amdahl, Stages
from vidsparse.metrics.record import Record
from vidsparse.metrics.registry import MetricInfo
from vidsparse.metrics.report.checks import check_clip, check_results
from vidsparse.metrics.statistics import Summary

Score = float | None
Grid = list[list[float | None]]


class Video(Record):
    """The geometry of all clips.

    Attributes:
        frames: Of each clip.
        height: In pixels.
        width: In pixels.
        fps: Frames per second.
        grid: Token grid of one self-attention call.
        tokens: In that grid.
    """

    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: float = Field(gt=0)
    grid: str
    tokens: int


class NoiseFloor(Record):
    """Dense against dense: what cannot be blamed on sparsity.

    Attributes:
        psnr: In dB; None if identical.
        identical: Whether all frames are equal.
        how: What was changed, such as another dense engine.
    """

    psnr: Score
    identical: bool
    how: str


class Machine(Record):
    """Where a generation was timed.

    Attributes:
        cpu: Its model.
        cores: That the process may use.
        threads: Of torch.
        load: Processes that ran or waited in the minute before, ours included.
    """

    cpu: str
    cores: PositiveInt
    threads: PositiveInt
    load: float | None


class PresetFacts(Record):
    """A preset as it ran."""

    name: str
    summary: str
    source: str
    parameters: dict[str, Any]


class Facts(Record):
    """What is measured of a generation beside its time and its frames.

    Attributes:
        mean_density: Over all self-attention calls, dense steps included; 1 for a dense run.
        dense_steps_share: Share of the steps in which every call was dense.
        sigmas: Noise level of each step; empty for a dense run, as all that follows.
        density: ``[layer][step]``, the mean over branches; None where the layer was not called.
        head_density: ``[layer][head]``, mean over sparse calls; 1 in a layer that was always
            dense, empty where all were.
        engines: Calls of each kernel engine.
        fallbacks: Calls that fell back to dense, by reason.
        notes: Sentences the user should read.
        peak_memory_bytes: On the device; None on a CPU.
    """

    mean_density: float
    dense_steps_share: float
    sigmas: list[float]
    density: Grid
    head_density: Grid = Field(default_factory=list)
    engines: dict[str, int]
    fallbacks: dict[str, int]
    notes: list[str]
    peak_memory_bytes: int | None = None


class Run(Facts):
    """One generation, dense or sparse, as it is kept beside its frames.

    Attributes:
        stages: Seconds of each stage; the total is from prompt to frames.
        frames_sha256: Of the raw frames.
        grid: The tokens, as FRAMESxHEIGHTxWIDTH.
        attention_shape: Of the queries: batch, tokens, heads, head_dim.
        machine: Where it ran and how busy that was.
        latent_error: Of each step, the root mean square difference from the latents of the dense
            run, relative to their root mean square.
    """

    stages: Stages
    frames_sha256: str
    grid: str
    attention_shape: list[int]
    machine: Machine
    latent_error: list[float] = Field(default_factory=list)


class Clip(Facts):
    """One preset on one prompt and seed: its generation beside the dense one, and the scores.

    Attributes:
        preset: Its name.
        prompt_index: Into ``Results.prompts``.
        seed: Of the noise, the dense run's too.
        seconds: Of the sparse generation; of several, the median.
        dense_seconds: Of the dense one, likewise.
        all_seconds: Of every sparse generation, in order of time; dense and sparse take turns.
        all_dense_seconds: Of every dense one.
        attention_error: ``[layer][step]``, relative L1 against dense attention; may be empty.
        step_latent_error: Relative RMSE of the latents against dense, after each step.
        time: Where the seconds went.
        dense_time: The same of the dense run.
        machine: That the sparse generation ran on.
        dense_machine: And the dense one.
        identical: Whether every frame equals dense.
        scores: By metric id; ``<id>@dense`` is the dense run's own value.
        curves: By metric id, one value a frame.
        frames: Raw frames, paths relative to the folder, of ``dense`` and ``sparse``.
    """

    preset: str
    prompt_index: int = Field(ge=0)
    seed: int
    seconds: float = Field(gt=0)
    dense_seconds: float = Field(gt=0)
    all_seconds: list[float] = Field(default_factory=list)
    all_dense_seconds: list[float] = Field(default_factory=list)
    attention_error: Grid = Field(default_factory=list)
    step_latent_error: list[float | None] = Field(default_factory=list)
    time: Stages | None = None
    dense_time: Stages | None = None
    machine: Machine | None = None
    dense_machine: Machine | None = None
    identical: bool
    scores: dict[str, Score]
    curves: dict[str, list[Score]]
    frames: dict[Literal["dense", "sparse"], str]

    @model_validator(mode="after")
    def _checked(self) -> Self:
        check_clip(self)
        return self


class Range(Record):
    """A median between two quartiles, which one run does not have."""

    median: float
    low: float | None
    high: float | None
    runs: int | None = None


class Pair(Record):
    """A preset against another on the same clips; ``verdict`` names the better one, if any."""

    other: str
    metric: str
    difference: Score
    low: Score
    high: Score
    verdict: str


class PresetSummary(Record):
    """One preset over all its clips.

    Attributes:
        mean_density: Realised, over all self-attention calls, dense steps included.
        asked_mean_density: Of its ``mean_density``; None where a preset has none.
        timing: Why the speed-up may not be that of sparsity; none where nothing speaks against it.
    """

    preset: str
    speedup: Range
    mean_density: float
    asked_mean_density: float | None = None
    dense_steps_share: float
    scores: dict[str, Summary]
    against_next: list[Pair] = Field(default_factory=list)
    gain: Amdahl | None = None
    timing: list[str] = Field(default_factory=list)
    sentence: str


class Results(Record):
    """A whole comparison: presets x prompts x seeds against dense.

    Attributes:
        dense_engines: Milliseconds of one dense attention call by engine; ``diffusers`` is stock.
        not_measured: Why a metric is not there, by its label.
        stack: What diffusers did to the pipeline, dense and sparse, such as "compiled".
        inputs: What the pipeline was given beside the prompt: files by what they are to it.
        strength: That of its call, where it was told one.
        negative_prompt: What guidance led away from, where that was told.
        guidance_2: Scale of the second transformer's guidance, where it has one of its own.
    """

    schema_version: Literal[1]
    created: str
    command: str
    model: str
    device: str
    gpu: str | None
    dtype: str
    stack: list[str] = Field(default_factory=list)
    inputs: dict[str, list[str]] = Field(default_factory=dict)
    strength: float | None = None
    negative_prompt: str | None = None
    engine: str
    versions: dict[str, str]
    video: Video
    steps: int
    guidance: float
    guidance_2: float | None = None
    prompts: list[str]
    seeds: list[int]
    schedule_note: str
    noise_floor: NoiseFloor | None
    dense_engines: dict[str, float] = Field(default_factory=dict)
    presets: list[PresetFacts]
    metrics: dict[str, MetricInfo]
    not_measured: dict[str, str] = Field(default_factory=dict)
    clips: list[Clip] = Field(min_length=1)
    summary: list[PresetSummary] = Field(min_length=1)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        check_results(self)
        return self


def read_results(path: str | Path) -> Results:
    """Read results.json.

    Raises:
        BadInputError: When there is no such file, or it is not what the schema says.
    """
    try:
        return Results.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise BadInputError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInputError(
            f"{path} is not results.json of schema version 1: {where}: {first['msg']}"
        ) from None
