"""How a video or an image becomes tokens, read from a pipeline with or without its weights."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.grid_readers import patch_of
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.inputs import call_parameters, makes_images
from vidsparse.pipelines.running.limits import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a video becomes tokens; the defaults are those of Wan 2.1.

    Attributes:
        spatial: Pixels per latent, in height and in width.
        temporal: Frames per latent frame, after the first; None for images.
        patch: Latents per token: frames, rows, columns.
        size_multiple: What height and width in pixels must be a multiple of.
        text: Most text tokens in the self-attention sequence; None when unknown.
        text_first: Whether they stand before the video.
    """

    spatial: int = 8
    temporal: int | None = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    size_multiple: int = 16
    text: int | None = 0
    text_first: bool = False

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise BadInputError, naming the nearest sizes that are possible, for one that is not."""
        step, asked = self.size_multiple, {"frames": frames, "height": height, "width": width}
        for name, value in asked.items():
            check_number(name, max(value, 1))  # what is too small is told with what is near
        for name, value in {"height": height, "width": width}.items():
            if value < 1 or value % step:
                raise BadInputError(
                    f"{name} {value} is not possible: the model takes multiples of {step}; "
                    f"{_nearest(value, 0, step, at_least=step)}"
                )
        if self.temporal is None and frames != 1:
            raise BadInputError(
                f"frames {frames} is not possible: the model makes an image, which is 1 frame"
            )
        if self.temporal is not None and (frames < 1 or (frames - 1) % self.temporal):
            raise BadInputError(
                f"frames {frames} is not possible: the model takes {self.temporal}k+1; "
                f"{_nearest(frames, 1, self.temporal, at_least=1)}"
            )

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The tokens of a video of this size, without text.

        Raises:
            BadInputError: For a size the model cannot take.

        Example:
            >>> str(Geometry().token_grid(81, 720, 1280))
            '21x45x80'
        """
        self.check_size(frames, height, width)
        latents = (
            (frames - 1) // (self.temporal or 1) + 1,
            height // self.spatial,
            width // self.spatial,
        )
        # CogVideoX 1.5 pads its latent frames
        return TokenGrid(*(-(-n // patch) for n, patch in zip(latents, self.patch, strict=True)))

    def sequence(self, frames: int, height: int, width: int) -> TokenGrid:
        """The tokens of self-attention with the longest text.

        Raises:
            BadInputError: For a size the model cannot take.

        Example:
            >>> str(Geometry(text=256).sequence(81, 720, 1280))
            '21x45x80+256'
        """
        grid, text = self.token_grid(frames, height, width), self.text or 0
        return replace(grid, **{"prefix" if self.text_first else "suffix": text})


def geometry_of(pipe: Any) -> Geometry:
    """The geometry of a pipeline.

    Raises:
        BadInputError: When its VAE or its transformer does not say how it compresses.
    """
    transformer = transformer_of(pipe)
    spatial = _compression(pipe.vae, "spatial")
    patch = _patch(pipe.vae, transformer)
    token = math.lcm(spatial * patch[1], spatial * patch[2])
    text, text_first = _text(pipe, transformer)
    return Geometry(
        spatial=spatial,
        temporal=None if makes_images(pipe) else _compression(pipe.vae, "temporal"),
        patch=patch,
        size_multiple=_size_multiple(pipe, token),
        text=text,
        text_first=text_first,
    )


def transformer_of(pipe: Any) -> Any:
    """The first transformer of a pipeline, not compiled."""
    found = getattr(pipe, "transformer", None)
    found = getattr(pipe, "transformer_2", None) if found is None else found
    return getattr(found, "_orig_mod", found)


def _nearest(value: int, offset: int, step: int, *, at_least: int) -> str:
    """The possible values on both sides of one that is not ``offset + k * step``."""
    below = value - (value - offset) % step
    near = [x for x in (below, below + step) if x >= at_least] or [at_least]
    return f"nearest is {near[0]}" if len(near) == 1 else f"nearest are {near[0]} and {near[1]}"


def _compression(vae: Any, axis: str) -> int:
    """Pixels or frames per latent, under the names that VAEs have for it."""
    vae = getattr(vae, "_orig_mod", vae)
    config = vae.config
    names = f"scale_factor_{axis}", f"{axis}_compression_ratio"
    said = [config.get(name) for name in names] + [vars(vae).get(names[1])]
    blocks = config.get("block_out_channels")
    if axis == "spatial" and blocks:
        said.append(2 ** (len(blocks) - 1))
    found = next((value for value in said if value), None)
    if found is None:
        raise BadInputError(
            f"{type(vae).__name__} does not say what its {axis} compression is: vidsparse's "
            "command line cannot tell which sizes are possible; use the Python API"
        )
    return int(found)


def _patch(vae: Any, transformer: Any) -> tuple[int, int, int]:
    """Latents per token.

    Where a pipeline packs latents itself, its transformer has more channels than there are
    latents, and the patch in its config is none. Of those that take masks or other images beside
    the latents, the channels that come out say it.
    """
    latents = vae.config.get("latent_channels") or vae.config.get("z_dim") or 0
    for name in ("in_channels", "out_channels"):
        channels = transformer.config.get(name) or 0
        if latents and channels % latents == 0:
            side = math.isqrt(channels // latents)
            if side > 1 and side**2 * latents == channels:
                return 1, side, side
    return patch_of(transformer.config)


_PICTURES = {"image": Image.new("RGB", (16, 16))}  # what a check may look at before the size


def _size_multiple(pipe: Any, token: int) -> int:
    """The smallest multiple of a token's side that the pipeline itself does not refuse."""
    sizes = [math.lcm(token, 2**power) for power in range(8)]
    return next((size for size in sizes if _accepts(pipe, size)), token)


def _accepts(pipe: Any, size: int) -> bool:
    """Whether a pipeline's own check has nothing to say against a height and width."""
    given = {"prompt": "a", "height": size, "width": size, **_PICTURES}
    parameters = inspect.signature(pipe.check_inputs).parameters if _checks(pipe) else {}
    arguments = {
        name: given.get(name)
        for name, parameter in parameters.items()
        if name in given or parameter.default is parameter.empty
    }
    if not {"prompt", "height", "width"} <= arguments.keys():
        return True
    try:
        pipe.check_inputs(**arguments)
    except (ValueError, TypeError) as error:
        return "divisible" not in str(error)
    return True


def _checks(pipe: Any) -> bool:
    return callable(getattr(pipe, "check_inputs", None))


def _text(pipe: Any, transformer: Any) -> tuple[int | None, bool]:
    """How many text tokens there are in self-attention at most, and whether they come first."""
    row = find_model(transformer)
    if row.text == "none" or row.pipeline.prompt_apart:
        return 0, False
    limit = call_parameters(pipe).get("max_sequence_length")
    names = "tokenizer_max_length", "tokenizer_2_max_length"
    length = limit.default if limit else sum(getattr(pipe, each, None) or 0 for each in names)
    return (length + row.pipeline.uncounted_text if length else None), row.text != "suffix"
