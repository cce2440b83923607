"""One video or image from one request, the same noise on every device."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.running.defaults import least_steps, takes_guidance
from vidsparse.pipelines.running.geometry import geometry_of
from vidsparse.pipelines.running.given import arguments_for
from vidsparse.pipelines.running.inputs import call_parameters, inputs_of
from vidsparse.pipelines.running.limits import check_number, check_steps
from vidsparse.pipelines.running.pictures import InputFile
from vidsparse.pipelines.running.video import to_uint8

OnStep = Callable[[int, int], None]
TOLD = (  # what every request tells a pipeline that can be told
    "prompt", "num_frames", "height", "width", "num_inference_steps", "guidance_scale",
    "generator", "output_type",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate.

    Attributes:
        prompt: What the video shows.
        frames: Frames of the video; which numbers are possible depends on the model, 1 for images.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale; 1 or less turns guidance off. Some pipelines know none.
        guidance_2: That of the second transformer of a pipeline that has two; None is the same.
        fps: Frames per second, told to pipelines that ask for it; None leaves it to them.
        seed: Of the noise, which is drawn on the CPU.
        negative_prompt: What guidance leads away from.
        inputs: Images and videos that the pipeline is given beside the prompt.
        strength: That of the pipeline's call, in (0, 1]; None leaves it as it is there.
    """

    prompt: str
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    guidance_2: float | None = None
    fps: float | None = None
    seed: int = 0
    negative_prompt: str | None = None
    inputs: tuple[InputFile, ...] = ()
    strength: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadInputError("the prompt is empty: say what the video shows")
        check_number("steps", self.steps)
        check_number("guidance", self.guidance)
        if self.strength is not None:
            check_number("strength", self.strength)
        if not 0 <= self.seed < 2**63:
            raise BadInputError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed}")


def generate(pipe: Any, request: Request, on_step: OnStep | None = None) -> np.ndarray:
    """Run a pipeline.

    Args:
        pipe: A diffusers pipeline that makes videos or images.
        request: What to generate.
        on_step: Called as ``on_step(steps_done, steps)`` after each step, or after the last where
            the pipeline does not tell of its steps.

    Returns:
        Raw frames, uint8 ``(frames, height, width, 3)``; an image is one frame.

    Raises:
        BadInputError: For a size or a setting the pipeline cannot take.
        VidsparseError: When memory runs out.
    """
    geometry_of(pipe).check_size(request.frames, request.height, request.width)
    made = _run(pipe, request, "np", on_step)
    return to_uint8(made.frames[0] if hasattr(made, "frames") else made.images[:1])


def denoise(pipe: Any, request: Request, on_step: OnStep | None = None) -> None:
    """Run a pipeline for what its transformer sees on the way: nothing is decoded.

    Args:
        pipe: As in ``generate``, and so are the others.
        request: What to generate.
        on_step: Told of each step.

    Raises:
        BadInputError: For a size or a setting the pipeline cannot take.
        VidsparseError: When memory runs out.
    """
    geometry_of(pipe).check_size(request.frames, request.height, request.width)
    _run(pipe, request, "latent", on_step)


def warm_up(pipe: Any, request: Request) -> None:
    """Run as few denoising steps as can be, so that what is only set up once is not timed."""
    _run(pipe, request, "latent", None, steps=fewest_steps(pipe, request))


def first_step(pipe: Any, request: Request) -> None:
    """Do the first step of a run, as every other would be done too, and leave out the rest.

    Pipelines that cannot be interrupted do them all.
    """

    def stop(done: int, steps: int) -> None:
        pipe._interrupt = True

    _run(pipe, request, "latent", stop)


def fewest_steps(pipe: Any, request: Request) -> int:
    """Fewest denoising steps that a pipeline can be told, at the strength of a request."""
    return inputs_of(pipe).least_steps(least_steps(pipe), request.strength)


def _run(
    pipe: Any, request: Request, output: str, on_step: OnStep | None, steps: int | None = None
) -> Any:
    told = 0

    def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal told
        told = step + 1
        if on_step is not None:
            on_step(told, getattr(pipe, "num_timesteps", 0) or request.steps)
        return tensors

    check_steps(steps or request.steps, fewest_steps(pipe, request))
    wanted = _arguments(request, steps or request.steps, output)
    wanted["callback_on_step_end"] = step_ended
    pipe.set_progress_bar_config(disable=True)
    accepted = _accepted(pipe, request, wanted)
    try:
        with _ended_anyway(pipe):
            made = pipe(**accepted)
    except torch.OutOfMemoryError as error:
        raise VidsparseError(
            f"the GPU ran out of memory at {request.frames} x {request.height} x {request.width}: "
            "take fewer frames or a smaller size, let weights wait in the CPU's memory "
            "(--offload), or decode in tiles (--vae-tiling)"
        ) from error
    except VidsparseError:
        raise
    except Exception as error:  # a library that is given anything raises anything
        if not inputs_of(pipe).slots:
            raise
        raise VidsparseError(_reason(pipe, request, error)) from error
    if on_step is not None and not told:
        on_step(request.steps, request.steps)
    return made


@contextlib.contextmanager
def _ended_anyway(pipe: Any) -> Iterator[None]:
    """Where a run stops in the middle, do what diffusers does at its end alone.

    The caches of the transformer forget it, which would go on in the next run as if that were the
    same, and what is offloaded leaves the GPU.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # what stopped the run is what is told
            pipe.maybe_free_model_hooks()
        raise


def _arguments(request: Request, steps: int, output: str) -> dict[str, Any]:
    """A request in the words of diffusers."""
    optional = {  # PixArt's default prompt is "", and Wan 2.1 refuses a second guidance scale
        "negative_prompt": request.negative_prompt,
        "guidance_scale_2": request.guidance_2,
        **dict.fromkeys(("fps", "frame_rate"), _whole(request.fps)),
    }
    return {
        "prompt": request.prompt,
        **{name: value for name, value in optional.items() if value is not None},
        "num_frames": request.frames,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": output,
        "use_resolution_binning": False,  # PixArt: another size than was asked for
        "max_area": request.height * request.width,  # FLUX Kontext: likewise
    }


def _whole(rate: float | None) -> float | int | None:
    """Cosmos takes whole frames a second alone."""
    return rate if rate is None or rate % 1 else int(rate)


def _accepted(pipe: Any, request: Request, wanted: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline's call takes of these arguments, with its files.

    Raises:
        BadInputError: When it cannot take a negative prompt or a file, or needs another.
    """
    parameters, name = call_parameters(pipe), type(pipe).__name__
    inputs = inputs_of(pipe, told=TOLD)
    inputs.check(name, {file.role for file in request.inputs}, request.strength)
    wanted |= arguments_for(pipe, request)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return wanted
    if "negative_prompt" in wanted and "negative_prompt" not in parameters:
        raise BadInputError(f"{name} takes no negative prompt: leave it out")
    known = parameters.keys() if takes_guidance(pipe) else parameters.keys() - {"guidance_scale"}
    return {key: value for key, value in wanted.items() if key in known}


def _reason(pipe: Any, request: Request, error: Exception) -> str:
    """Why a pipeline failed, which may be for a file that it has not, or cannot take."""
    inputs, given = inputs_of(pipe), {file.role for file in request.inputs}
    missing = [f"--{slot.role}" for slot in inputs.slots if slot.role not in given]
    with_files = f"with --{', --'.join(sorted(given))}" if given else "from text alone"
    without = f"; it also takes {', '.join(missing)}" if missing else ""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{type(pipe).__name__} failed {with_files}: {reason}{without}"
