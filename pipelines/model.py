"""What vidsparse has to know of a model: facts, and no copy of its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from vidsparse.grid import TokenGrid
from vidsparse.pipelines.layout import Branches, Layout, OnlyDense

Arguments = Mapping[str, Any]  # of the transformer's forward call, by name
Before = Callable[[Any, Arguments, int], int]
Noise = tuple[float, float] | Callable[[Any, Any], Tensor]

SHIPPED = "the shipped pipeline"  # the name of its release


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """How the command line knows a release without asking the hub for its configs.

    Attributes:
        short: Its name on the command line.
        repository: Hub id of its diffusers pipeline.
        pipeline: Class of that.
        frames: Of a video, as its authors recommend, as all that follows.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        guidance_2: That of the second transformer; None where there is none, or it is the same.
        fps: Frames per second.
        spatial: Pixels per latent of its VAE, in height and in width; None where a pipeline with
            empty weights has to be asked how a video becomes tokens, which takes a second.
        scheduler: Class and config of its scheduler, without what is that class's default.
        vae: The same of its VAE.
        settings: Of the pipeline itself, such as ``boundary_ratio``.
    """

    short: str
    repository: str
    pipeline: str
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    guidance_2: float | None = None
    fps: float
    spatial: int | None = 8
    scheduler: tuple[str, Arguments]
    vae: tuple[str, Arguments]
    settings: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One model of a class, told from others by its config: what is published is of one of them.

    Attributes:
        name: As its authors call it.
        config: What its transformer's config says, and that of no other release; where it has a
            hub, all that is not the default of its class.
        experts: How many transformers its pipeline has.
        hub: Where it is, and how it is run; None where the command line has no name for it.
    """

    name: str
    config: Arguments
    experts: int = 1
    hub: Hub | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFacts:
    """What the pipelines of a model do not say themselves.

    Attributes:
        fps: Frames per second of the examples in diffusers' documentation, for pipelines whose
            call has no ``frame_rate`` and no ``fps``.
        least_steps: Fewest denoising steps they can do.
        prompt_apart: Whether the prompt is not in the self-attention sequence: other tokens than
            the video's are condition frames or history there.
        uncounted_text: Text tokens in that sequence which ``max_sequence_length`` does not count.
        calls_besides: Calls of the transformer in a step beside those of guidance, of one sample
            each, where a pipeline is told nothing else.
        stand_ins: Whether the call that denoises asks text connectors and VAEs for something, also
            where it gives latents.
    """

    fps: float = 24
    least_steps: int = 1
    prompt_apart: bool = False
    uncounted_text: int = 0
    calls_besides: int = 0
    stand_ins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A family of transformers of diffusers; no weights, no imports.

    Attributes:
        name: What people call it.
        transformers: Class names, compared as text so that diffusers stays a lazy import.
        self_attention: Regular expression that fully matches the names of the self-attention
            modules over video or image tokens, and of no others.
        cross_attention: The same of modules in which those attend to the prompt, where each call
            of the pipelines that follows a prompt is one of its own; None where that is not known.
        video_shape: From the transformer's config and the arguments of its forward call, the
            frames, rows and columns of its token grid; raises ``OnlyDense`` where there is none.
        text: Where tokens that are no video (text, reference images, history) stand in the
            self-attention sequence. "before the video" is a prefix after which the padding of
            shorter samples stands at the end of the sequence. Or, from config, arguments and the
            number of such tokens, how many of them come first.
        guidance: How the pipelines run the branches of guidance: one call each, or both stacked
            in one batch.
        timestep: Name of the forward argument that carries the noise level.
        noise: What that argument holds where there is no noise, and where there is nothing else;
            None is 0 and the number of training timesteps. Or the noise level in [0, 1] from
            config and argument.
        one_by_one: Whether the model calls attention for each entry of the batch by itself.
        padding: Modules which multiply a padding mask out to queries x keys, or copy it for each
            layer.
        padding_argument: That mask in their forward call.
        masked: Whether self-attention is given a mask even where nothing is padded.
        moves: How many times as much as most models its blocks read and write besides attention and
            linear layers, not compiled; where a whole run was measured (``plan`` predicts by it).
        has_own_rows: Whether text before the video attends to other tokens than the video does,
            which its mask says.
        releases: Those for which settings are published (``published.py``), or which have a name
            on the command line.
        pipeline: What its pipelines do not say themselves.
        tested: With a tiny random model alone, or in a whole pipeline too.
    """

    name: str
    transformers: tuple[str, ...]
    self_attention: str
    video_shape: Callable[[Any, Arguments], tuple[int, int, int]]
    text: Literal["none", "prefix", "suffix", "before the video"] | Before = "none"
    guidance: Literal["calls", "uncond first", "cond first"] = "calls"
    timestep: str = "timestep"
    noise: Noise | None = None
    one_by_one: bool = False
    cross_attention: str | None = None
    padding: str | None = None
    padding_argument: str = "attention_mask"
    masked: bool = False
    moves: float = 1.0
    has_own_rows: bool = False
    releases: tuple[Release, ...] = ()
    pipeline: PipelineFacts = PipelineFacts()
    tested: Literal["model", "pipeline"] = "model"

    def release(self, transformer: nn.Module, experts: int | None) -> str | None:
        """The name of the release that a transformer is of; None if it is none, or could be two.

        Args:
            transformer: Of this row.
            experts: How many transformers its pipeline has; None where nobody knows.
        """
        config: Arguments = getattr(transformer, "config", {})
        found = [
            each.name
            for each in self.releases
            if experts in (None, each.experts)
            and all(config.get(key) == value for key, value in each.config.items())
        ]
        return found[0] if len(found) == 1 else None

    def layers(self, transformer: nn.Module) -> list[nn.Module]:
        """The self-attention modules of a transformer, in order."""
        return _matching(transformer, self.self_attention)

    def cross_layers(self, transformer: nn.Module) -> list[nn.Module]:
        """The modules of a transformer that attend to the prompt, in order."""
        return _matching(transformer, self.cross_attention) if self.cross_attention else []

    def block_lists(self, transformer: nn.Module) -> dict[str, nn.ModuleList]:
        """The lists of blocks that hold self-attention, by name."""
        names = {
            found[1]
            for path, _ in transformer.named_modules()
            if re.fullmatch(self.self_attention, path)
            and (found := re.match(r"(.*?)\.\d+\.", path))
        }
        lists = {name: transformer.get_submodule(name) for name in sorted(names)}
        return {name: each for name, each in lists.items() if isinstance(each, nn.ModuleList)}

    def padded(self, transformer: nn.Module) -> list[nn.Module]:
        """The modules that are told of padding."""
        return _matching(transformer, self.padding) if self.padding else []

    def layout(self, config: Any, arguments: Arguments, branches: Branches) -> Layout:
        """How the tokens of one forward call stand.

        Raises:
            OnlyDense: Where they do not stand as a video.
        """
        video = TokenGrid(*self.video_shape(config, arguments))
        return Layout(
            video=video,
            before=lambda extra, padding: self._before(config, arguments, extra, padding),
            branches=branches,
            batch=len(arguments["hidden_states"]) if self.one_by_one else None,
            has_own_rows=self.has_own_rows,
        )

    def noise_level(self, config: Any, arguments: Arguments) -> tuple[Any, Any]:
        """What carries the noise level, and its value without noise and with nothing else."""
        given = arguments.get(self.timestep)
        if callable(self.noise):
            return self.noise(config, given), (0.0, 1.0)
        return given, self.noise

    def latents(self, arguments: Arguments) -> Tensor | list[Tensor] | None:
        """What the forward call makes a prediction of, by entries of the batch."""
        return arguments.get("hidden_states", arguments.get("x"))

    def _before(self, config: Any, arguments: Arguments, extra: int, padding: int) -> int:
        match self.text:
            case "prefix":
                return extra
            case "before the video":
                return extra - padding
            case "suffix":
                return 0
            case "none":
                if extra:
                    raise OnlyDense(f"{extra} tokens are no video, where this model has none")
                return 0
            case before:
                return before(config, arguments, extra)


def _matching(transformer: nn.Module, paths: str) -> list[nn.Module]:
    return [m for path, m in transformer.named_modules() if re.fullmatch(paths, path)]
