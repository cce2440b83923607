"""What ``generate`` and ``compare`` share: the options of a run, checked before weights load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vidsparse
from vidsparse.cli.options import option
from vidsparse.cli.screen import busy, hear_libraries, note, step_bar
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.cli.on_ray import Pool
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.pipelines.running.generate import Request
    from vidsparse.preset import Preset
    from vidsparse.stats import Stats

Prompt = Annotated[
    str | None,
    typer.Argument(help="What the video shows; the shipped pipeline can draw a prompt itself."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Which model makes which video or image; what is left out is as its authors recommend."""

    model: Annotated[
        str,
        option(
            "Folder or hub id of a diffusers pipeline, or a name: tiny (the pipeline that ships), "
            "wan2.1-1.3b, wan2.1-14b, wan2.2-a14b, wan2.2-ti2v-5b.",
            panel="Model",
        ),
    ] = "tiny"
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.", panel="Model")] = "auto"
    dtype: Annotated[
        str | None,
        option("float32, bfloat16 or float16; by default float32 on a CPU.", panel="Model"),
    ] = None
    trust_remote_code: Annotated[
        bool, option("Run Python code that comes with the model.", "--trust-remote-code",
                     panel="Model"),
    ] = False  # fmt: skip
    allow_pickle: Annotated[
        bool, option("Also read pickle weights, which can run any code.", "--allow-pickle",
                     panel="Model"),
    ] = False  # fmt: skip
    frames: Annotated[int | None, option("Frames of the video.", panel="Video")] = None
    height: Annotated[int | None, option("In pixels.", panel="Video")] = None
    width: Annotated[int | None, option("In pixels.", panel="Video")] = None
    steps: Annotated[int | None, option("Denoising steps.", panel="Video")] = None
    guidance: Annotated[float | None, option("Guidance scale.", panel="Video")] = None
    seed: Annotated[int, option("Of the noise.", panel="Video")] = 0
    fps: Annotated[float | None, option("Frames per second of the file.", panel="Video")] = None
    strict: Annotated[
        bool,
        option("Fail where a call would fall back to dense.", "--strict", panel="Sparsity"),
    ] = False

    def job(self, prompts: Sequence[str | None]) -> Job:
        """Check everything that can be checked without weights.

        Raises:
            BadInputError: For a model, device, size or prompt that is not possible.
        """
        from vidsparse.pipelines.running import load
        from vidsparse.pipelines.running.checkpoints import find_checkpoint, find_source

        source = find_source(self.model)
        if isinstance(source, Path):
            load.check_folder(
                source, allow_pickle=self.allow_pickle, trust_remote_code=self.trust_remote_code
            )
        checkpoint = find_checkpoint(self.model)
        device = load.resolve_device(self.device)
        dtype = load.resolve_dtype(self.dtype, device)
        fps = checkpoint.or_default("fps", self.fps)
        requests = [self._request(checkpoint, prompt) for prompt in prompts]
        return Job(self, checkpoint, device, dtype, fps, requests)

    def _request(self, checkpoint: Checkpoint, prompt: str | None) -> Request:
        from vidsparse.pipelines.running.generate import Request

        size = checkpoint.size(self.frames, self.height, self.width)
        if self.guidance is not None and not checkpoint.takes_guidance:
            raise BadInputError(
                f"{checkpoint.pipeline} takes no guidance scale: leave --guidance out"
            )
        return Request(
            prompt=self._prompt(checkpoint, prompt),
            steps=checkpoint.or_default("steps", self.steps),
            guidance=checkpoint.or_default("guidance", self.guidance),
            seed=self.seed,
            **size,
        )

    def _prompt(self, checkpoint: Checkpoint, prompt: str | None) -> str:
        """The prompt, drawn or looked over by the shipped pipeline's own grammar."""
        from vidsparse.pipelines.running.checkpoints import TINY

        if checkpoint.source != TINY:
            if prompt is None:
                raise BadInputError(
                    "a prompt is needed: only the shipped pipeline can draw one itself"
                )
            return prompt
        from vidsparse.pipelines.running.prompts import explain_unknown_words, random_prompt

        if prompt is None:
            prompt = random_prompt(self.seed)
            note(f"drawn with seed {self.seed}: {prompt}")
        if unknown := explain_unknown_words(prompt):
            note(f"not in the shipped pipeline's vocabulary, ignored: {', '.join(unknown)}")
        return prompt


@dataclass(frozen=True, slots=True)
class Job:
    """Runs that were found possible.

    Attributes:
        options: As given.
        checkpoint: The model.
        device: Where it will run.
        dtype: Of its weights.
        fps: Frames per second of the files.
        requests: One for each video.
    """

    options: RunOptions
    checkpoint: Checkpoint
    device: str
    dtype: str
    fps: float
    requests: list[Request]

    @property
    def suffix(self) -> str:
        """Of the files, where nobody asked for another."""
        return ".png" if self.checkpoint.image else ".mp4"

    def effective(self, preset: Preset) -> Preset:
        """A preset as it will run on the model, with what is published of it for that."""
        from vidsparse.pipelines.published import apply

        return apply(preset, self.checkpoint.release)[0]

    def write(
        self, path: Path, frames: np.ndarray, request: Request, preset: Preset | None
    ) -> None:
        """Write what was made, a video or an image, with how it was made in its metadata."""
        from vidsparse.pipelines.running.video import write_image, write_video

        names = ("prompt", "seed", "steps", "guidance")
        about = {name: getattr(request, name) for name in names}
        about |= {"preset": preset and preset.name, "vidsparse": vidsparse.__version__}
        if self.checkpoint.image:
            write_image(path, frames, about=about)
        else:
            write_video(path, frames, self.fps, about=about)

    def load(self) -> Any:
        """Load the pipeline."""
        from vidsparse.pipelines.running.checkpoints import geometry_of
        from vidsparse.pipelines.running.load import load_pipeline

        hear_libraries()
        with busy(f"loading {self.checkpoint.source}"):
            pipe = load_pipeline(
                self.checkpoint.source,
                device=self.device,
                dtype=self.dtype,
                trust_remote_code=self.options.trust_remote_code,
                allow_pickle=self.options.allow_pickle,
            )
        for request in self.requests:
            geometry_of(pipe).check_size(request.frames, request.height, request.width)
        return pipe


def maybe_pool(ray: str | None, job: Job) -> AbstractContextManager[Pool | None]:
    """The workers of a Ray cluster for a job; None without an address.

    Raises:
        BadInputError: When there is no such cluster, or one device was asked for.
    """
    if ray is None:
        return nullcontext()
    from vidsparse.cli.on_ray import ray_pool

    if ":" in job.device:
        raise BadInputError(
            f"--ray gives each worker a GPU of its own: --device {job.device} is one"
        )
    return ray_pool(ray, on_gpu=job.device == "cuda")


@dataclass(frozen=True, slots=True)
class Result:
    """One video or image.

    Attributes:
        frames: uint8 ``(frames, height, width, 3)``.
        seconds: From prompt to frames, on the clock of this process.
        stats: What the session did; None for a dense run.
    """

    frames: np.ndarray
    seconds: float
    stats: Stats | None


def run_request(
    pipe: Any, request: Request, preset: Preset | None, label: str, *, strict: bool = False
) -> Result:
    """Generate one video with progress, dense without a preset; leaves the pipeline clean."""
    from vidsparse.pipelines.running.generate import generate

    attached = vidsparse.sparsify(pipe, preset, strict=strict) if preset else nullcontext()
    with attached as session:
        stats = session.stats if session else None
        with step_bar(label, request.steps, stats) as on_step:
            started = perf_counter()
            frames = generate(pipe, request, on_step)
            return Result(frames, perf_counter() - started, stats)
