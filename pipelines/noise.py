"""The noise level of each step of a run, before its weights are loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.pipelines.levels import noise_levels
from vidsparse.pipelines.skeleton import diffusers_class, read_json

# Pipelines that hand their scheduler even noise levels from 1 to 1 / steps, whatever it would do.
_EVEN = (
    "AuraFlowPipeline", "BriaFiboPipeline", "BriaPipeline", "Flux2KleinPipeline", "Flux2Pipeline",
    "FluxPipeline", "HunyuanImagePipeline", "HunyuanVideo15Pipeline", "HunyuanVideoPipeline",
    "Krea2Pipeline", "LTX2Pipeline", "LTXPipeline", "LongCatImagePipeline", "Lumina2Pipeline",
    "MotifVideoPipeline", "OvisImagePipeline", "QwenImagePipeline",
)  # fmt: skip
_MOCHI_THRESHOLD = 0.025  # as MochiPipeline calls its own schedule


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


def scheduled_sigmas(folder: Path, steps: int, tokens: int) -> list[float]:
    """Ask a folder's own scheduler, as its pipeline would.

    Args:
        folder: Of the pipeline.
        steps: Denoising steps.
        tokens: Of the video, by which some schedulers shift their noise levels.
    """
    pipeline = diffusers_class(read_json(folder / "model_index.json").get("_class_name"), folder)
    check_steps(pipeline.__name__, steps)
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    scheduler = diffusers_class(config.get("_class_name"), folder).from_config(config)
    own = _own_sigmas(pipeline, steps)
    given: dict[str, Any] = {"num_inference_steps": steps}
    if own is not None and not scheduler.config.get("use_flow_sigmas"):
        given = {"sigmas": list(own)}
    if scheduler.config.get("use_dynamic_shifting"):
        given["mu"] = _shift(pipeline, scheduler.config, tokens, steps)
    scheduler.set_timesteps(**given)
    return noise_levels(scheduler)[:steps]


def check_steps(pipeline: str, steps: int) -> None:
    """Raise BadInputError for a number of steps that a pipeline cannot do."""
    least = least_steps(pipeline)
    if steps < least:
        raise BadInputError(f"steps must be at least {least}, got {steps}")


def least_steps(pipeline: str) -> int:
    """Fewest denoising steps of a pipeline, by the name of its class."""
    return 2 if pipeline == "MochiPipeline" else 1  # it divides its steps in two halves


def _own_sigmas(pipeline: Any, steps: int) -> Sequence[float] | None:
    if pipeline.__name__ == "MochiPipeline":
        module = sys.modules[pipeline.__module__]
        return module.linear_quadratic_schedule(steps, _MOCHI_THRESHOLD)
    if pipeline.__name__ in _EVEN:
        return [1 - step / steps for step in range(steps)]
    return None


def _shift(pipeline: Any, config: Any, tokens: int, steps: int) -> float:
    """How far longer sequences shift noise levels, by the pipeline's own function."""
    module = sys.modules[pipeline.__module__]
    if hasattr(module, "compute_empirical_mu"):  # FLUX.2
        return module.compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    if hasattr(module, "calculate_shift"):
        usual = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5,
                 "max_shift": 1.15}  # fmt: skip
        return module.calculate_shift(tokens, *(config.get(name, usual[name]) for name in usual))
    raise BadInputError(
        f"nothing yet knows how {pipeline.__name__} shifts its noise levels: give --grid"
    )
