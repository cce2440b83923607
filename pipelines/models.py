"""The model table: where attention sits in each transformer, and how its tokens are laid out.

Everything that differs between models is a row here; a new model is one more row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.tokens import Branches, Layout

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Facts about one transformer class of diffusers; no weights, no imports.

    Attributes:
        transformer: Class name, compared as text so that diffusers stays a lazy import.
        self_attention: Regular expression that fully matches the names of the self-attention
            modules and of no others.
        video_shape: From the transformer's config and the arguments of its forward call, the
            frames, rows and columns of its token grid.
        text: Where tokens that are no video stand in the self-attention sequence; or, from the
            arguments and the number of such tokens, how many of them come first.
        guidance: How the pipeline runs the branches of guidance: one call each, or both stacked
            in one batch.
        timestep: Name of the forward argument that carries the noise level.
        noise: What that argument holds where there is no noise, and where there is nothing else;
            None is 0 and the number of training timesteps.
    """

    transformer: str
    self_attention: str
    video_shape: Callable[[Any, Arguments], tuple[int, int, int]]
    text: Literal["none", "prefix", "suffix"] | Callable[[Arguments, int], int] = "none"
    guidance: Literal["calls", "uncond first", "cond first"] = "calls"
    timestep: str = "timestep"
    noise: tuple[float, float] | None = None

    def layout(self, config: Any, arguments: Arguments, branches: Branches) -> Layout:
        """How the tokens of one forward call stand."""
        video = TokenGrid(*self.video_shape(config, arguments))
        return Layout(video=video, before=lambda n: self._before(arguments, n), branches=branches)

    def _before(self, arguments: Arguments, extra: int) -> int:
        if callable(self.text):
            return self.text(arguments, extra)
        return extra if self.text == "prefix" else 0

    def layers(self, transformer: nn.Module) -> list[nn.Module]:
        """The self-attention modules of a transformer, in order."""
        return [
            module
            for path, module in transformer.named_modules()
            if re.fullmatch(self.self_attention, path)
        ]


def _channels_first_video(config: Any, arguments: Arguments) -> tuple[int, int, int]:
    """Latents of shape ``(batch, channels, frames, height, width)``, patched by ``patch_size``."""
    frames, height, width = arguments["hidden_states"].shape[2:]
    patch_t, patch_h, patch_w = config.patch_size
    return frames // patch_t, height // patch_h, width // patch_w


MODELS: Mapping[str, Model] = {
    row.transformer: row
    for row in (
        Model(
            transformer="WanTransformer3DModel",
            self_attention=r"blocks\.\d+\.attn1",
            video_shape=_channels_first_video,
        ),
    )
}


def find_model(transformer: nn.Module) -> Model:
    """The row of a transformer's class or of its nearest base class.

    Raises:
        BadInputError: Naming the classes there are rows for.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in MODELS:
            return MODELS[cls.__name__]
    raise BadInputError(
        f"vidsparse does not know the transformer {type(transformer).__name__}; it knows "
        f"{', '.join(sorted(MODELS))}: a new model is one row in vidsparse/pipelines/models.py"
    )
