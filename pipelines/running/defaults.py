"""What a pipeline does when it is not told: the defaults of its call, then its own attributes."""

from __future__ import annotations

import inspect
from typing import Any

from vidsparse.pipelines.model import PipelineFacts
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.geometry import geometry_of, transformer_of
from vidsparse.pipelines.running.inputs import call_parameters, makes_images


def default_settings(pipe: Any) -> dict[str, Any]:
    """What a pipeline recommends, with or without its weights.

    Returns:
        ``frames``, ``height``, ``width``, ``steps``, ``guidance`` and ``fps``; None for what it
        does not say.
    """
    height, width = _size(pipe)
    return {
        "frames": 1 if makes_images(pipe) else _frames(pipe),
        "height": height,
        "width": width,
        "steps": _default(pipe, "num_inference_steps"),
        "guidance": _guidance(pipe),
        "fps": 1 if makes_images(pipe) else _fps(pipe),
    }


def takes_guidance(pipe: Any) -> bool:
    """Whether a call makes use of a guidance scale; HunyuanVideo-1.5 and Qwen-Image do not."""
    return _default(pipe, "guidance_scale") is not None


def why_no_negative_prompt(kind: type) -> str | None:
    """Why a second prompt does nothing in a pipeline of a class; None where guidance uses it."""
    parameters = inspect.signature(kind.__call__).parameters
    if "negative_prompt" not in parameters:
        return f"{kind.__name__} takes no negative prompt"
    scale = parameters.get("true_cfg_scale")
    if scale is not None and isinstance(scale.default, float | int) and scale.default <= 1:
        return (
            f"{kind.__name__} reads a negative prompt only with a true_cfg_scale above 1, which is "
            f"{scale.default:g}: it is guided by a number alone"
        )
    return None


def least_steps(pipe: Any) -> int:
    """Fewest denoising steps that a pipeline can do."""
    return _facts(pipe).least_steps


def _facts(pipe: Any) -> PipelineFacts:
    return find_model(transformer_of(pipe)).pipeline


def _default(pipe: Any, name: str) -> Any:
    parameter = call_parameters(pipe).get(name)
    return None if parameter is None else parameter.default


def _guidance(pipe: Any) -> float:
    """Of the call, or of the pipeline's guider, or 1: without a negative prompt there is none."""
    if takes_guidance(pipe):
        return _default(pipe, "guidance_scale")
    return getattr(getattr(pipe, "guider", None), "guidance_scale", 1.0)


def _frames(pipe: Any) -> int | None:
    said = _default(pipe, "num_frames")
    trained = transformer_of(pipe).config.get("sample_frames")  # of latents, in Allegro
    possible = trained and trained % (geometry_of(pipe).temporal or 1) == 1
    return said or (trained if possible else None)


def _fps(pipe: Any) -> float:
    said = _default(pipe, "frame_rate") or _default(pipe, "fps")
    return said or _facts(pipe).fps


def _size(pipe: Any) -> tuple[int | None, int | None]:
    """Height and width, each pipeline having its own place for them."""
    config = transformer_of(pipe).config
    if hasattr(pipe, "target_size") and hasattr(pipe, "default_aspect_ratio"):
        width, height = pipe.default_aspect_ratio  # HunyuanVideo-1.5
        return pipe.video_processor.calculate_default_height_width(height, width, pipe.target_size)
    scale = getattr(pipe, "vae_scale_factor", None) or geometry_of(pipe).spatial
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    found = []
    for name in ("height", "width"):
        latents = config.get(f"sample_{name}") or side
        pixels = latents * scale if isinstance(latents, int) else None
        found.append(_default(pipe, name) or getattr(pipe, f"default_{name}", None) or pixels)
    return found[0], found[1]
