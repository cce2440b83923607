"""Options for what diffusers itself does to a pipeline, and for what a pipeline is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from vidsparse.cli.options import option

if TYPE_CHECKING:
    from vidsparse.pipelines.running.pictures import InputFile
    from vidsparse.pipelines.running.stack import Stack

CACHE_HELP = (
    "first-block, mag or taylorseer of diffusers, with settings after =: first-block=0.1, "
    "taylorseer=cache_interval=4,max_order=1."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What diffusers does to the pipeline beside sparse attention."""

    compile: Annotated[
        bool, option("Compile the blocks of the transformer.", "--compile", panel="Stack")
    ] = False
    quantize: Annotated[
        str | None,
        option(
            "Eight-bit weights by torchao: int8 computes in the model's dtype, int8-dynamic and "
            "fp8 in eight bits.",
            panel="Stack",
        ),
    ] = None
    cache: Annotated[str | None, option(CACHE_HELP, panel="Stack")] = None
    offload: Annotated[
        str | None,
        option(
            "Weights wait in the CPU's memory: model, group (block by block) or sequential.",
            panel="Stack",
        ),
    ] = None
    lora: Annotated[
        Path | None, option("A .safetensors file, or the folder of one.", panel="Stack")
    ] = None
    vae_tiling: Annotated[
        bool, option("Decode in tiles, in less memory.", "--vae-tiling", panel="Stack")
    ] = False

    shift: Annotated[
        float | None,
        option(
            "Shift of a flow scheduler's noise levels, in place of the model's own: for Wan 3 at "
            "480p, 5 at 720p.",
            panel="Video",
        ),
    ] = None

    def stack(self, device: str, dtype: str, steps: int, strength: float | None) -> Stack:
        """Check everything that can be checked without the model.

        Raises:
            BadInputError: For what cannot go together, or needs what is not here.
        """
        from vidsparse.pipelines.running.caches import read_cache
        from vidsparse.pipelines.running.stack import Stack

        found = Stack(
            compile=self.compile,
            quantize=cast("Any", self.quantize),
            cache=None if self.cache is None else read_cache(self.cache),
            offload=cast("Any", self.offload),
            lora=self.lora and self.lora.expanduser(),
            vae_tiling=self.vae_tiling,
            shift=self.shift,
            steps=steps,
        )
        found.check(device, dtype)
        found.check_strength(strength)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """What the pipeline is given beside the prompt, as far as its call takes it."""

    image: Annotated[
        list[Path] | None,
        option("An image to begin with, to edit or to refer to; repeatable.", panel="Inputs"),
    ] = None
    last_image: Annotated[Path | None, option("An image to end with.", panel="Inputs")] = None
    video: Annotated[
        Path | None, option("A video to change, or to go on from.", panel="Inputs")
    ] = None
    mask: Annotated[
        Path | None,
        option("White where something new is made; an image, or a video.", panel="Inputs"),
    ] = None
    control: Annotated[
        Path | None,
        option("What is followed, such as edges or depth; an image, or a video.", panel="Inputs"),
    ] = None
    strength: Annotated[
        float | None,
        option("That of the pipeline's call: mostly, how much is made anew.", panel="Inputs"),
    ] = None

    def files(self) -> list[InputFile]:
        """Look at the files.

        Raises:
            BadInputError: For one that is not there, or is not what it should be.
        """
        from vidsparse.pipelines.running import inputs
        from vidsparse.pipelines.running.pictures import look_at_all

        given = {
            inputs.IMAGE: self.image,
            inputs.LAST_IMAGE: self.last_image,
            inputs.VIDEO: self.video,
            inputs.MASK: self.mask,
            inputs.CONTROL: self.control,
        }
        return look_at_all({role: files for role, files in given.items() if files is not None})
