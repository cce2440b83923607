"""Videos or images to make: which model, where, and every request, known to be possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.errors import BadInputError
from vidsparse.versions import VERSION

if TYPE_CHECKING:
    import numpy as np

    from vidsparse.comparison.models import Model
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.pipelines.running.generate import Request
    from vidsparse.pipelines.running.pictures import InputFile
    from vidsparse.preset import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Runs that were found possible.

    Attributes:
        model: Where the pipeline comes from.
        checkpoint: What is known of it without its weights.
        device: Where it runs.
        dtype: Of its weights.
        fps: Frames per second of the files.
        requests: One for each video.
        strict: Whether to fail where a call would fall back to dense.
    """

    model: Model
    checkpoint: Checkpoint
    device: str
    dtype: str
    fps: float
    requests: list[Request]
    strict: bool = False

    @property
    def suffix(self) -> str:
        """Of the files, where nobody asked for another."""
        return ".png" if self.checkpoint.image else ".mp4"

    def effective(self, preset: Preset) -> Preset:
        """A preset as it will run on the model, with what is published of it for that.

        Raises:
            BadInputError: When it was calibrated for another model or size, or is in eight bits
                that its device has no kernel for.
        """
        from vidsparse.pipelines.published import apply

        found = apply(preset, self.checkpoint.release)[0]
        self._check_precision(found)
        for each in found.of_model:
            each.check_layers(self.checkpoint.layers)
            for request in self.requests:
                size = request.frames, request.height, request.width
                grid = self.checkpoint.geometry.sequence(*size)
                each.check_grid(grid.frames, grid.height, grid.width)
        return found

    def _check_precision(self, preset: Preset) -> None:
        """Before weights load: a call would say the same."""
        import torch

        from vidsparse.kernels.engines.table import ENGINES
        from vidsparse.preset import Precision

        if preset.precision is Precision.MODEL:
            return  # and nothing asks the driver
        device = torch.device(self.device)
        arch = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        preset.check_precision(
            ENGINES["int8"].why_not, "here",
            head_dim=self.checkpoint.head_dim, device=device.type, arch=arch,
        )  # fmt: skip

    def write(
        self, path: Path, frames: np.ndarray, request: Request, preset: Preset | None
    ) -> None:
        """Write what was made, a video or an image, with how it was made in its metadata."""
        from vidsparse.pipelines.running.video import write_image, write_video

        names = ("prompt", "seed", "steps", "guidance")
        about = {name: getattr(request, name) for name in names}
        about |= {"preset": preset and preset.name, "vidsparse": VERSION}
        about |= given_beside(request)
        if request.guidance_2 is not None:
            about["guidance_2"] = request.guidance_2
        if stack := self.model.stack.describe():
            about["stack"] = stack
        if self.checkpoint.image:
            write_image(path, frames, about=about)
        else:
            write_video(path, frames, self.fps, about=about)

    def load(self) -> Any:
        """Load the pipeline.

        Raises:
            BadInputError: When it cannot be loaded, or cannot make a size that is asked for.
        """
        from vidsparse.pipelines.running.checkpoints import geometry_of

        pipe = self.model.load()
        for request in self.requests:
            geometry_of(pipe).check_size(request.frames, request.height, request.width)
        return pipe


def given_beside(request: Request) -> dict[str, Any]:
    """What a run was given beside its prompt, for a record; empty where that was all."""
    files: dict[str, list[str]] = {}
    for file in request.inputs:
        files.setdefault(file.role, []).append(str(file.path))
    told = {name: getattr(request, name) for name in ("strength", "negative_prompt")}
    told = {name: value for name, value in told.items() if value is not None}
    return {**({"inputs": files} if files else {}), **told}


def make_request(
    checkpoint: Checkpoint,
    prompt: str,
    *,
    seed: int = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    fps: float | None = None,
    inputs: Sequence[InputFile] = (),
    strength: float | None = None,
) -> Request:
    """What to generate; what is left out is as the inputs have it, or the model's authors.

    A pipeline that asks for a rate is told ``fps``, and its own default where that is None.

    Raises:
        BadInputError: For what the model cannot do.
    """
    from vidsparse.pipelines.running.generate import Request
    from vidsparse.pipelines.running.given import size_from
    from vidsparse.pipelines.running.limits import check_steps

    checkpoint.inputs.check(checkpoint.pipeline, {file.role for file in inputs}, strength)
    asked = size_from(checkpoint, inputs, frames=frames, height=height, width=width)
    size = checkpoint.size(**asked)
    if guidance is not None and not checkpoint.takes_guidance:
        raise BadInputError(
            f"{checkpoint.pipeline} takes no guidance scale: leave --guidance (guidance=) out"
        )
    scale = checkpoint.or_default("guidance", guidance)
    if negative_prompt is not None:
        checkpoint.check_negative_prompt(scale)
    number = checkpoint.or_default("steps", steps)
    check_steps(number, checkpoint.inputs.least_steps(checkpoint.least_steps, strength))
    return Request(
        prompt=prompt,
        steps=number,
        inputs=tuple(inputs),
        strength=strength,
        guidance=scale,
        guidance_2=checkpoint.guidance_2 if guidance is None else None,
        seed=seed,
        negative_prompt=negative_prompt,
        fps=fps if size["frames"] > 1 else None,
        **size,
    )
