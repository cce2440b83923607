"""What a transformer works on, from its config: for the time and the memory of a run."""

from __future__ import annotations

from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.linear_work import linear_work, widest
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS, Checkpoint
from vidsparse.pipelines.running.geometry import transformer_of
from vidsparse.pipelines.running.named import named_releases, named_skeleton, named_transformer
from vidsparse.pipelines.running.quantized import saved_by_fp8
from vidsparse.pipelines.running.skeleton import skeleton
from vidsparse.preset import Preset
from vidsparse.run_memory import Memory, estimate
from vidsparse.step_time import Shapes


def shapes_of(checkpoint: Checkpoint, grid: TokenGrid) -> Shapes:
    """What the forward calls of a step work on.

    Guidance that a transformer takes as an input costs no second sample.

    Args:
        checkpoint: With configs, or a release in the model table.
        grid: Its tokens.

    Raises:
        BadInputError: When its configs do not say how wide it is.
    """
    transformer, _ = empty_transformer(checkpoint)
    model, config = find_model(transformer), transformer.config
    layers = model.layers(transformer)
    heads = getattr(config, "num_attention_heads", None)
    head_dim = getattr(config, "attention_head_dim", None)
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        raise BadInputError(
            f"the config of {type(transformer).__name__} does not say how many heads it has, and "
            "how wide: the time of a run cannot be told"
        )
    embedded = bool(getattr(config, "guidance_embeds", False))
    guided = checkpoint.takes_guidance and not embedded and (checkpoint.guidance or 0) > 1
    return Shapes(
        tokens=grid.tokens,
        layers=len(layers),
        heads=heads,
        head_dim=head_dim,
        linear=linear_work(model, transformer),
        samples=(2 if guided else 1) + model.pipeline.calls_besides,
        masked=model.masked,
        moves=model.moves,
    )


def memory_of(
    checkpoint: Checkpoint, preset: Preset, grid: TokenGrid, *, fp8: bool = False
) -> Memory:
    """The memory of a run in 16 bits, estimated.

    Args:
        checkpoint: As ``shapes_of`` takes it.
        preset: What runs.
        grid: Its tokens.
        fp8: Whether the weights of linear layers are in FP8.

    Raises:
        BadInputError: As ``shapes_of`` does.
    """
    shapes, (transformer, experts) = shapes_of(checkpoint, grid), empty_transformer(checkpoint)
    model = find_model(transformer)
    return estimate(
        preset,
        grid,
        shapes,
        weights=experts * transformer.num_parameters(),
        saved=experts * saved_by_fp8(transformer) if fp8 else 0,
        inner=widest(model, transformer),
        batch=1 if model.guidance == "calls" else shapes.samples - model.pipeline.calls_besides,
    )


def empty_transformer(checkpoint: Checkpoint) -> tuple[Any, int]:
    """The first transformer of a checkpoint without weights, and how many there are.

    Raises:
        BadInputError: As ``empty_pipeline`` does.
    """
    if checkpoint.configs is None:
        short = _short(checkpoint)
        return named_transformer(short), named_releases()[short][1].experts
    pipe = skeleton(checkpoint.configs)
    return transformer_of(pipe), 1 + (getattr(pipe, "transformer_2", None) is not None)


def _short(checkpoint: Checkpoint) -> str:
    return next(name for name, known in CHECKPOINTS.sources.items() if known == checkpoint.source)


def empty_pipeline(checkpoint: Checkpoint) -> Any:
    """The pipeline of a checkpoint without weights and text encoders; nobody may change it.

    Raises:
        BadInputError: For a hub id whose configs nobody has fetched, or what ``skeleton`` refuses.
    """
    if checkpoint.configs is not None:
        return skeleton(checkpoint.configs)
    return named_skeleton(_short(checkpoint))
