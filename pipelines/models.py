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
        text: Where text tokens stand in the self-attention sequence.
        timestep: Name of the forward argument that carries the noise level.
    """

    transformer: str
    self_attention: str
    video_shape: Callable[[Any, Arguments], tuple[int, int, int]]
    text: Literal["none", "prefix", "suffix"] = "none"
    timestep: str = "timestep"

    def grid(self, config: Any, arguments: Arguments) -> TokenGrid:
        """The token grid of one forward call."""
        frames, height, width = self.video_shape(config, arguments)
        return TokenGrid(frames, height, width)

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
