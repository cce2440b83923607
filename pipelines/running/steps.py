"""How many denoising steps a pipeline can do."""

from __future__ import annotations

from vidsparse.errors import BadInputError


def check_steps(pipeline: str, steps: int) -> None:
    """Raise BadInputError for a number of steps that a pipeline cannot do."""
    least = least_steps(pipeline)
    if steps < least:
        raise BadInputError(f"steps must be at least {least}, got {steps}")


def least_steps(pipeline: str) -> int:
    """Fewest denoising steps of a pipeline, by the name of its class."""
    return 2 if pipeline == "MochiPipeline" else 1  # it divides its steps in two halves
