"""Options that say which model makes which video or image, checked before weights load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidsparse.cli.options import option
from vidsparse.cli.screen import note
from vidsparse.cli.stack_options import InputOptions, StackOptions
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.comparison.job import Job
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.pipelines.running.generate import Request
    from vidsparse.pipelines.running.pictures import InputFile

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
            "wan2.1-1.3b, wan2.1-14b, wan2.2-a14b, wan2.2-ti2v-5b, hunyuanvideo, cogvideox-5b, "
            "hunyuanvideo-1.5, mochi-1, ltx-video, ltx-2, flux.1-dev, flux.2-dev, qwen-image.",
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
    negative_prompt: Annotated[
        str | None,
        option("What guidance leads away from.", "--negative-prompt", panel="Video"),
    ] = None
    seed: Annotated[int, option("Of the noise.", panel="Video")] = 0
    fps: Annotated[float | None, option("Frames per second.", panel="Video")] = None
    strict: Annotated[
        bool,
        option("Fail where a call would fall back to dense.", "--strict", panel="Sparsity"),
    ] = False

    def job(
        self,
        prompts: Sequence[str | None],
        given: InputOptions = InputOptions(),  # noqa: B008 it cannot be changed
        options: StackOptions = StackOptions(),  # noqa: B008
    ) -> Job:
        """Check everything that can be checked without weights.

        Args:
            prompts: One for each video; None lets the shipped pipeline draw it.
            given: What the pipeline is given beside them.
            options: What diffusers does to it.

        Raises:
            BadInputError: For a model, device, size, prompt or file that is not possible.
        """
        from vidsparse.comparison.job import Job
        from vidsparse.comparison.models import StoredModel
        from vidsparse.pipelines.running import load
        from vidsparse.pipelines.running.checkpoints import find_checkpoint, find_source
        from vidsparse.pipelines.running.given import rate_from

        source = find_source(self.model)
        trust = {"allow_pickle": self.allow_pickle, "trust_remote_code": self.trust_remote_code}
        if isinstance(source, Path):
            load.check_folder(source, **trust)
        checkpoint = find_checkpoint(self.model)
        device = load.resolve_device(self.device)
        dtype = load.resolve_dtype(self.dtype, device)
        files = given.files()
        rate = rate_from(checkpoint, files) if self.fps is None else self.fps
        rate = checkpoint.or_default("fps", rate)
        requests = [
            self._request(checkpoint, prompt, files, given.strength, rate) for prompt in prompts
        ]
        if files and None in (self.height, self.width):
            first = requests[0]
            note(f"made at {first.frames} x {first.height} x {first.width}, for what is given")
        stack = options.stack(device, dtype, requests[0].steps, given.strength)
        if checkpoint.configs is not None:
            stack.check_folder(checkpoint.configs)
        return Job(
            model=StoredModel(
                source=checkpoint.source, device=device, dtype=dtype, stack=stack, **trust
            ),
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            fps=rate,
            requests=requests,
            strict=self.strict,
        )

    def _request(
        self,
        checkpoint: Checkpoint,
        prompt: str | None,
        files: Sequence[InputFile],
        strength: float | None,
        rate: float,
    ) -> Request:
        from vidsparse.comparison.job import make_request

        names = ("seed", "frames", "height", "width", "steps", "guidance", "negative_prompt")
        asked = {name: getattr(self, name) for name in names}
        return make_request(
            checkpoint,
            self._prompt(checkpoint, prompt),
            inputs=files,
            strength=strength,
            fps=rate,
            **asked,
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
