"""What is known of a model without its weights: geometry, usual settings, noise levels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid

TINY = Path(__file__).parent / "tiny"  # the pipeline that ships


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a video becomes tokens.

    Attributes:
        spatial: Pixels per latent, in height and in width.
        temporal: Frames per latent frame, after the first.
        patch: Latents per token: frames, rows, columns.
        size_multiple: What height and width in pixels must be a multiple of.
    """

    spatial: int = 8
    temporal: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    size_multiple: int = 16

    @classmethod
    def of(cls, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> Geometry:
        """Read the configs of a VAE and a transformer; what they leave out is as in Wan 2.1.

        ``WanPipeline`` takes multiples of 16 only, whatever its parts could do.
        """
        spatial = vae.get("scale_factor_spatial", cls().spatial)
        patch = tuple(transformer.get("patch_size", cls().patch))
        return cls(
            spatial=spatial,
            temporal=vae.get("scale_factor_temporal", cls().temporal),
            patch=patch,
            size_multiple=math.lcm(16, spatial * patch[1], spatial * patch[2]),
        )

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise BadInputError, naming the nearest sizes that are possible, for one that is not."""
        step = self.size_multiple
        for name, value in {"height": height, "width": width}.items():
            if value < 1 or value % step:
                raise BadInputError(
                    f"{name} {value} is not possible: the model takes multiples of {step}; "
                    f"{_nearest(value, 0, step, at_least=step)}"
                )
        if frames < 1 or (frames - 1) % self.temporal:
            raise BadInputError(
                f"frames {frames} is not possible: the model takes {self.temporal}k+1; "
                f"{_nearest(frames, 1, self.temporal, at_least=1)}"
            )

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The tokens of a video of this size.

        Raises:
            BadInputError: For a size the model cannot take.

        Example:
            >>> str(Geometry().token_grid(81, 720, 1280))
            '21x45x80'
        """
        self.check_size(frames, height, width)
        latents = ((frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial)
        rows = (size // patch for size, patch in zip(latents, self.patch, strict=True))
        return TokenGrid(*rows)


def _nearest(value: int, offset: int, step: int, *, at_least: int) -> str:
    """The possible values on both sides of one that is not ``offset + k * step``."""
    below = value - (value - offset) % step
    near = [x for x in (below, below + step) if x >= at_least] or [at_least]
    return f"nearest is {near[0]}" if len(near) == 1 else f"nearest are {near[0]} and {near[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model before its weights are loaded, with the settings its authors recommend.

    Attributes:
        source: Folder or hub id of its diffusers pipeline.
        geometry: How a video becomes tokens; None for a hub id that is not in the table, until
            its pipeline is loaded.
        layers: Self-attention layers; None when unknown.
        frames: Frames of a video.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        fps: Frames per second.
        flow_shift: Shift of the noise levels; None when a folder's scheduler says it.
    """

    source: str | Path
    geometry: Geometry | None = Geometry()
    layers: int | None = None
    frames: int = 81
    height: int = 480
    width: int = 832
    steps: int = 50
    guidance: float = 5.0
    fps: int = 16
    flow_shift: float | None = 3.0

    def sigmas(self, steps: int) -> list[float]:
        """Noise level of each step, as the pipeline passes it to its transformer."""
        if self.flow_shift is not None:
            return flow_sigmas(steps, self.flow_shift)
        return _scheduler_sigmas(Path(self.source), steps)


_WAN22_VAE = Geometry(spatial=16, size_multiple=32)
CHECKPOINTS: Mapping[str, Checkpoint] = {
    "tiny": Checkpoint(
        source=TINY,
        geometry=Geometry(patch=(1, 1, 1)),
        layers=8,
        frames=25,
        height=160,
        width=160,
        steps=20,
        guidance=4.0,
        fps=12,
        flow_shift=None,
    ),
    "wan2.1-1.3b": Checkpoint(source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", layers=30),
    "wan2.1-14b": Checkpoint(
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers", layers=40, height=720, width=1280, flow_shift=5.0
    ),
    "wan2.2-a14b": Checkpoint(
        source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        layers=40,
        height=720,
        width=1280,
        steps=40,
        guidance=4.0,
        flow_shift=12.0,
    ),
    "wan2.2-ti2v-5b": Checkpoint(
        source="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        geometry=_WAN22_VAE,
        layers=30,
        frames=121,
        height=704,
        width=1280,
        fps=24,
        flow_shift=5.0,
    ),
}


def find_checkpoint(model: str | Path) -> Checkpoint:
    """What is known of a model: a name in ``CHECKPOINTS``, a folder, or a hub id.

    Raises:
        BadInputError: When it is none of these, or the folder's configs cannot be read.
    """
    if str(model) in CHECKPOINTS:
        return CHECKPOINTS[str(model)]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _read_folder(folder.resolve())
    if not is_hub_id(str(model)):
        raise BadInputError(
            f"there is no model folder {model}: give a folder, a hub id such as "
            f"Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one of {', '.join(CHECKPOINTS)}"
        )
    by_source = {str(row.source): row for row in CHECKPOINTS.values()}
    unknown = Checkpoint(source=str(model), geometry=None)
    return by_source.get(str(model), unknown)


def is_hub_id(text: str) -> bool:
    """Whether this is written as OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None


def _read_folder(folder: Path) -> Checkpoint:
    if folder == TINY.resolve():
        return CHECKPOINTS["tiny"]
    transformer = read_json(folder / "transformer" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    found = Checkpoint(source=folder, geometry=Geometry.of(vae, transformer), flow_shift=None)
    return replace(found, layers=transformer.get("num_layers"))


def geometry_of(pipe: Any) -> Geometry:
    """The geometry of a loaded pipeline."""
    transformer = pipe.transformer or pipe.transformer_2
    return Geometry.of(pipe.vae.config, transformer.config)


def read_json(path: Path) -> dict[str, Any]:
    """Read one config of a model folder.

    Raises:
        BadInputError: When it is missing or is not a JSON object.
    """
    way_out = "download the model again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(
            f"the model folder is incomplete, {path} is missing: {way_out}, or give the folder "
            "that holds model_index.json"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read as JSON ({error}): {way_out}") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} does not hold a JSON object: {way_out}")
    return value


def flow_sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels ``shift * s / (1 + (shift - 1) * s)`` of equally spaced s from 1 to 0.001.

    Example:
        >>> [round(sigma, 3) for sigma in flow_sigmas(4, 3.0)]
        [1.0, 0.9, 0.75, 0.501]
    """
    if steps < 1:
        raise BadInputError(f"steps must be at least 1, got {steps}")
    even = (1 - step / steps * (1 - 1 / 1000) for step in range(steps))
    return [shift * s / (1 + (shift - 1) * s) for s in even]


def _scheduler_sigmas(folder: Path, steps: int) -> list[float]:
    """Ask the folder's own scheduler."""
    import diffusers

    if steps < 1:
        raise BadInputError(f"steps must be at least 1, got {steps}")
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise BadInputError(
            f"diffusers {diffusers.__version__} has no scheduler {config.get('_class_name')}, "
            f"which {folder} asks for: update diffusers"
        )
    scheduler = kind.from_config(config)
    scheduler.set_timesteps(steps)
    return [float(sigma) for sigma in scheduler.sigmas[:steps]]
