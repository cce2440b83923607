"""One video from one request, the same noise on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.checkpoints import geometry_of
from vidsparse.pipelines.video import to_uint8

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate.

    Attributes:
        prompt: What the video shows.
        frames: Frames of the video; which numbers are possible depends on the model.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale; 1 or less turns guidance off.
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
        if self.steps < 1:
            raise BadInputError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.guidance < float("inf"):
            raise BadInputError(f"guidance must be at least 0, got {self.guidance}")
        if not 0 <= self.seed < 2**63:
            raise BadInputError(f"seed must be a whole number from 0, got {self.seed}")


def generate(pipe: Any, request: Request, on_step: OnStep | None = None) -> np.ndarray:
    """Run a pipeline.

    Args:
        pipe: A diffusers video pipeline.
        request: What to generate.
        on_step: Called as ``on_step(steps_done, steps)`` after each step.

    Returns:
        Raw frames, uint8 ``(frames, height, width, 3)``.

    Raises:
        BadInputError: For a size the model cannot take.
        VidsparseError: When memory runs out.
    """
    geometry_of(pipe).check_size(request.frames, request.height, request.width)
    return to_uint8(_run(pipe, request, "np", on_step).frames[0])


def warm_up(pipe: Any, request: Request) -> None:
    """Run one denoising step, so that what is only set up once is not timed."""
    _run(pipe, request, "latent", None, steps=1)


def _run(
    pipe: Any, request: Request, output: str, on_step: OnStep | None, steps: int | None = None
) -> Any:
    def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, request.steps)
        return tensors

    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_frames=request.frames,
            height=request.height,
            width=request.width,
            num_inference_steps=steps or request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type=output,
            callback_on_step_end=step_ended,
        )
    except torch.OutOfMemoryError as error:
        raise VidsparseError(
            f"the GPU ran out of memory at {request.frames} x {request.height} x {request.width}: "
            "take fewer frames or a smaller size"
        ) from error
