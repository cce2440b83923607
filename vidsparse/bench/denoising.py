"""One denoising run of a pipeline, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidsparse.bench.real_size import text_arguments
from vidsparse.errors import VidsparseError
from vidsparse.pipelines.running.defaults import takes_guidance
from vidsparse.pipelines.running.geometry import call_parameters
from vidsparse.pipelines.running.watched import Watched

CALLBACK = "callback_on_step_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """What a run makes.

    Attributes:
        frames: Of the video; 1 for images.
        height: In pixels.
        width: In pixels.
        guidance: Guidance scale; None where the pipeline takes none.
    """

    frames: int
    height: int
    width: int
    guidance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A run.

    Attributes:
        seconds: From the call of the pipeline to its latents, on a quiet device.
        step_seconds: Of each step, by the clock of the device, from the end of the one before.
        peak_bytes: Of GPU memory at most; None on a CPU.
        latents: What was made.
        graphs: How many graphs were compiled while it ran.
    """

    seconds: float
    step_seconds: list[float]
    peak_bytes: int | None
    latents: Tensor
    graphs: int


@dataclass(slots=True)
class _Marks:
    """Moments on the clock of the device; nothing waits for them until they are read."""

    device: torch.device
    moments: list[Any] = field(default_factory=list)

    def add(self) -> None:
        if self.device.type != "cuda":
            self.moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.moments.append(event)

    def seconds(self) -> list[float]:
        """Between each and the one before; the device must be at rest."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) / 1000 for first, second in pairs]
        return [second - first for first, second in pairs]


def run(
    pipe: Any, video: Video, steps: int, before_step: Callable[[int], None] = lambda step: None
) -> Timed:
    """Denoise once.

    Args:
        pipe: Without text encoder and VAE.
        video: What to make.
        steps: Denoising steps.
        before_step: Is told the number of each step, from 0, before it begins.

    Raises:
        BadInputError: When the pipeline cannot be run so.
        VidsparseError: When the GPU runs out of memory.
    """
    device = torch.device(next(pipe.transformer.parameters()).device)
    on_gpu = device.type == "cuda"
    marks = _Marks(device)

    def step_ended() -> None:
        marks.add()
        before_step(len(marks.moments) - 1)

    arguments = _arguments(pipe, video, steps, device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    before, started = _graphs(), time.perf_counter()
    before_step(0)
    marks.add()
    try:
        with _told_of_steps(pipe, step_ended) as callback:
            made = pipe(**arguments, **callback)
    except torch.OutOfMemoryError as error:
        raise VidsparseError("the GPU ran out of memory: take fewer --layers") from error
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    latents = made.frames if hasattr(made, "frames") else made.images
    return Timed(
        seconds=seconds,
        step_seconds=marks.seconds(),
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        latents=latents,
        graphs=_graphs() - before,
    )


@contextmanager
def _told_of_steps(pipe: Any, step_ended: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """What to call a pipeline with so that it tells of its steps; else its scheduler does."""
    if CALLBACK in call_parameters(pipe):

        def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step_ended()
            return tensors

        yield {CALLBACK: tell}
        return
    scheduler = pipe.scheduler
    scheduler.step = Watched(scheduler.step, lambda made: step_ended())
    try:
        yield {}
    finally:
        del scheduler.step


def _arguments(pipe: Any, video: Video, steps: int, device: torch.device) -> dict[str, Any]:
    parameters = call_parameters(pipe)
    guided = takes_guidance(pipe) and video.guidance is not None
    by_a_part = getattr(pipe, "guider", None) is not None
    given = text_arguments(pipe, with_negative=guided or by_a_part) | {
        "num_frames": video.frames,
        "height": video.height,
        "width": video.width,
        "num_inference_steps": steps,
        "guidance_scale": video.guidance,
        "output_type": "latent",
        "generator": torch.Generator(device).manual_seed(0),
        "use_resolution_binning": False,
    }
    left_out = set() if guided else {"guidance_scale"}
    return {name: given[name] for name in given.keys() & parameters.keys() - left_out}


def _graphs() -> int:
    """Graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"].get("unique_graphs", 0)
