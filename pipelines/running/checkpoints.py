"""What is known of a model without its weights: how it makes tokens, and its default settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.pipelines.levels import calls_a_step
from vidsparse.pipelines.model import SHIPPED, Hub, Release
from vidsparse.pipelines.models import IMAGE, VIDEO, find_model
from vidsparse.pipelines.running.defaults import (
    default_settings,
    takes_guidance,
    why_no_negative_prompt,
)
from vidsparse.pipelines.running.generate import TOLD
from vidsparse.pipelines.running.geometry import Geometry, geometry_of, transformer_of
from vidsparse.pipelines.running.inputs import Inputs, inputs_of, makes_images
from vidsparse.pipelines.running.limits import check_number, check_steps
from vidsparse.pipelines.running.named import named_releases, named_skeleton
from vidsparse.pipelines.running.skeleton import skeleton
from vidsparse.policies.block_size import WIDE

TINY = Path(__file__).parent.parent / "tiny"  # the pipeline that ships


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model before its weights are loaded, with the settings its authors recommend.

    Attributes:
        source: Folder or hub id of its diffusers pipeline.
        geometry: How a video becomes tokens.
        layers: Self-attention layers of a transformer; None when unknown.
        head_dim: Numbers of a head of those.
        release: Its name in the model table; None where nothing is published for it.
        frames: Frames of a video; None, here and below, where nothing is recommended.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        guidance_2: That of the second transformer, where it has one of its own.
        fps: Frames per second.
        least_steps: Fewest denoising steps of its pipeline.
        calls_a_step: Calls of the transformer in a step, of which the last makes one.
        configs: The folder with its configs; None for a hub id whose configs were not needed.
        pipeline: Class of its pipeline.
        image: Whether it makes images.
        takes_guidance: Whether it can be told a guidance scale.
        inputs: What it takes beside the prompt.
    """

    source: str | Path
    geometry: Geometry = field(default_factory=Geometry)
    layers: int | None = None
    head_dim: int = WIDE
    release: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_2: float | None = None
    fps: float | None = None
    least_steps: int = 1
    calls_a_step: int = 1
    configs: Path | None = None
    pipeline: str = ""
    image: bool = False
    takes_guidance: bool = True
    inputs: Inputs = field(default_factory=Inputs)

    def size(
        self, frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, Any]:
        """Frames, height and width, those left out as recommended.

        Raises:
            BadInputError: When the model cannot take them, or recommends nothing.
        """
        asked = {"frames": frames, "height": height, "width": width}
        found = {name: self._or_default(name, value) for name, value in asked.items()}
        self.geometry.check_size(**found)
        return found

    def or_default(self, name: str, value: float | None) -> Any:
        """The value of a setting, or what is recommended.

        Raises:
            BadInputError: When there is neither, or it is beyond all limits, or those are fewer
                denoising steps than the pipeline can do.
        """
        found = self._or_default(name, value)
        check_number(name, found)
        if name == "steps":
            check_steps(found, self.least_steps)
        return found

    def calls(self, steps: int) -> int:
        """How often a run of so many steps calls the transformer, as its scheduler lists them."""
        return self.calls_a_step * (steps - 1) + 1

    def about_calls(self, steps: int) -> list[str]:
        """What to say where a run is planned by more calls than it has steps."""
        if self.calls(steps) == steps:
            return []
        return [
            f"its scheduler calls the transformer {self.calls(steps)} times in {steps} steps: each "
            "call is counted as a step here, as in a run"
        ]

    def _or_default(self, name: str, value: float | None) -> Any:
        found = getattr(self, name) if value is None else value
        if found is None:
            raise BadInputError(f"{self.pipeline} recommends no {name} of its own: say which")
        return found

    def check_negative_prompt(self, guidance: float) -> None:
        """Make sure that a second prompt would do something.

        Args:
            guidance: The scale of a run.

        Raises:
            BadInputError: When it would not.
        """
        import diffusers

        kind = getattr(diffusers, self.pipeline, None)
        if kind is not None and (why := why_no_negative_prompt(kind)):
            raise BadInputError(f"{why}: leave --negative-prompt (negative_prompt=) out")
        if self.takes_guidance and guidance <= 1:
            raise BadInputError(
                f"guidance {guidance:g} is off, and a negative prompt then does nothing: give a "
                "scale above 1, or leave --negative-prompt (negative_prompt=) out"
            )


def _of_hub(release: Release, hub: Hub) -> Checkpoint:
    settings = {"release": release.name, **_recommended(hub)}
    if hub.spatial is None:
        return replace(checkpoint_of(named_skeleton(hub.short), hub.repository), **settings)
    size_multiple = hub.spatial * max(Geometry().patch)
    return Checkpoint(
        source=hub.repository,
        geometry=Geometry(spatial=hub.spatial, size_multiple=size_multiple),
        layers=release.config["num_layers"],
        pipeline=hub.pipeline,
        **settings,
    )


def _recommended(hub: Hub) -> dict[str, Any]:
    """The settings of a release, as its authors recommend them."""
    return {
        "frames": hub.frames,
        "height": hub.height,
        "width": hub.width,
        "steps": hub.steps,
        "guidance": hub.guidance,
        "guidance_2": hub.guidance_2,
        "fps": hub.fps,
    }


_TINY = Checkpoint(
    source=TINY,
    geometry=Geometry(patch=(1, 1, 1)),
    layers=8,
    frames=25,
    height=160,
    width=160,
    steps=20,
    guidance=4.0,
    fps=12,
    configs=TINY,
    pipeline="WanPipeline",
    release=SHIPPED,
)


class _Checkpoints(Mapping[str, Checkpoint]):
    """Each is put together when it is asked for, at most once."""

    def __init__(self) -> None:
        self._hubs = {name: (found, hub) for name, (_, found, hub) in named_releases().items()}
        self._made = {"tiny": _TINY}
        self.sources: dict[str, str | Path] = {"tiny": TINY}
        self.sources |= {name: hub.repository for name, (_, hub) in self._hubs.items()}

    def __getitem__(self, name: str) -> Checkpoint:
        if name not in self._made:
            self._made[name] = _of_hub(*self._hubs[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


CHECKPOINTS = _Checkpoints()


def named(source: str | Path) -> Checkpoint | None:
    """The checkpoint of ``CHECKPOINTS`` that comes from a folder or a hub id; None if none does."""
    names = [name for name, known in CHECKPOINTS.sources.items() if known == source]
    return CHECKPOINTS[names[0]] if names else None


def find_checkpoint(model: str | Path) -> Checkpoint:
    """What is known of a model: a name in ``CHECKPOINTS``, a folder, or a hub id.

    Raises:
        BadInputError: When it is none of these, or its configs cannot be had or read.
    """
    source = find_source(model)
    if known := named(source):
        return known
    if isinstance(source, Path):
        return _read_folder(source, source)
    return _read_folder(source, _configs_of(source))


def find_source(model: str | Path) -> str | Path:
    """The folder or the hub id of a model that may also be a name in ``CHECKPOINTS``.

    Raises:
        BadInputError: When it is none of these.
    """
    if str(model) in CHECKPOINTS:
        return CHECKPOINTS.sources[str(model)]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return TINY if folder.resolve() == TINY.resolve() else folder.resolve()
    if not is_hub_id(str(model)):
        raise BadInputError(
            f"there is no model folder {model}{_unnamed(str(model))}: give a folder, a hub id such "
            f"as Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one of {', '.join(CHECKPOINTS)}"
        )
    return str(model)


def _unnamed(text: str) -> str:
    """What to say of a model that is supported, and has no name on the command line."""
    unnamed = [row for row in VIDEO + IMAGE if not any(each.hub for each in row.releases)]
    known = [name.strip() for row in unnamed for name in re.split("[,;]", row.name)]
    found = [name for name in known if _letters(name) == _letters(text)]
    return f" ({found[0]} is supported, but has no name here)" if found else ""


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def is_hub_id(text: str) -> bool:
    """Whether this is written as OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None


def _read_folder(source: str | Path, configs: Path) -> Checkpoint:
    return replace(checkpoint_of(skeleton(configs), source), configs=configs)


def checkpoint_of(pipe: Any, source: str | Path) -> Checkpoint:
    """What is known of a pipeline, with or without its weights.

    Args:
        pipe: A diffusers pipeline.
        source: Folder or hub id that it comes from.

    Raises:
        BadInputError: When its transformer is not in the model table.
    """
    transformer = transformer_of(pipe)
    model = find_model(transformer)
    experts = 1 + (getattr(pipe, "transformer_2", None) is not None)
    release = model.release(transformer, experts)
    return Checkpoint(
        source=source,
        geometry=geometry_of(pipe),
        layers=len(model.layers(transformer)),
        head_dim=getattr(transformer.config, "attention_head_dim", None) or WIDE,
        release=release,
        pipeline=type(pipe).__name__,
        image=makes_images(pipe),
        takes_guidance=takes_guidance(pipe),
        inputs=inputs_of(pipe, told=TOLD),
        least_steps=model.pipeline.least_steps,
        calls_a_step=calls_a_step(getattr(pipe, "scheduler", None)),
        **_settings(pipe, release),
    )


def _settings(pipe: Any, release: str | None) -> dict[str, Any]:
    """What is recommended: of the release, which says more than the defaults of its pipeline."""
    own, kind = default_settings(pipe), type(pipe).__name__
    for _, each, hub in named_releases().values():
        if each.name == release and hub.pipeline == kind:
            known = _recommended(hub)
            return known if takes_guidance(pipe) else known | {"guidance": own["guidance"]}
    return own


def _configs_of(hub_id: str) -> Path:
    """Fetch the configs of a hub id, a few kilobytes, or find them where they were kept."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["model_index.json", "*config.json"]))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"the configs of {hub_id} are not on this machine and could not be had from the hub: "
            "check its name and the network, give a local folder, or log in with `hf auth login` "
            "if it is gated"
        ) from error
