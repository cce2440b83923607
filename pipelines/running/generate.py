"""One video or image from one request, the same noise on every device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.running.defaults import least_steps, takes_guidance
from vidsparse.pipelines.running.geometry import call_parameters, geometry_of
from vidsparse.pipelines.running.limits import check_number, check_steps
from vidsparse.pipelines.running.video import to_uint8

OnStep = Callable[[int, int], None]


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
        seed: Of the noise, which is drawn on the CPU.
        negative_prompt: What guidance leads away from.
    """

    prompt: str
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    seed: int = 0
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadInputError("the prompt is empty: say what the video shows")
        check_number("steps", self.steps)
        check_number("guidance", self.guidance)
        if not 0 <= self.seed < 2**63:
            raise BadInputError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed}")


def generate(pipe: Any, request: Request, on_step: OnStep | None = None) -> np.ndarray:
    """Run a pipeline.

    Args:
        pipe: A diffusers pipeline that makes videos or images from text.
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


def warm_up(pipe: Any, request: Request) -> None:
    """Run as few denoising steps as can be, so that what is only set up once is not timed."""
    _run(pipe, request, "latent", None, steps=least_steps(pipe))


def _run(
    pipe: Any, request: Request, output: str, on_step: OnStep | None, steps: int | None = None
) -> Any:
    told = 0

    def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal told
        told = step + 1
        if on_step is not None:
            on_step(told, request.steps)
        return tensors

    check_steps(steps or request.steps, least_steps(pipe))
    wanted = _arguments(request, steps or request.steps, output)
    wanted["callback_on_step_end"] = step_ended
    pipe.set_progress_bar_config(disable=True)
    try:
        made = pipe(**_accepted(pipe, wanted))
    except torch.OutOfMemoryError as error:
        raise VidsparseError(
            f"the GPU ran out of memory at {request.frames} x {request.height} x {request.width}: "
            "take fewer frames or a smaller size"
        ) from error
    if on_step is not None and not told:
        on_step(request.steps, request.steps)
    return made


def _arguments(request: Request, steps: int, output: str) -> dict[str, Any]:
    """A request in the words of diffusers."""
    negative = {"negative_prompt": request.negative_prompt}
    return {
        "prompt": request.prompt,
        **(negative if request.negative_prompt is not None else {}),  # PixArt's default is ""
        "num_frames": request.frames,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": output,
        "use_resolution_binning": False,  # PixArt: another size than was asked for
    }


def _accepted(pipe: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline's call takes of these arguments.

    Raises:
        BadInputError: When it cannot take a negative prompt, or needs more than a text.
    """
    parameters = call_parameters(pipe)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return wanted
    name = type(pipe).__name__
    if "negative_prompt" in wanted and "negative_prompt" not in parameters:
        raise BadInputError(f"{name} takes no negative prompt: leave it out")
    needed = [
        key
        for key, each in parameters.items()
        if each.default is each.empty and key != "self" and key not in wanted
    ]
    if needed:
        raise BadInputError(
            f"{name} does not work from text alone, it also needs {', '.join(needed)}: call it "
            "yourself, with vidsparse.sparsify"
        )
    if not takes_guidance(pipe):
        parameters = parameters.keys() - {"guidance_scale"}
    return {key: value for key, value in wanted.items() if key in parameters}
