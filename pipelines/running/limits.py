"""What a run may be asked for: beyond it, a number is a slip, and would hang or fill the memory."""

from __future__ import annotations

from collections.abc import Mapping

from vidsparse.errors import BadInputError

LIMITS: Mapping[str, tuple[float, float]] = {
    "steps": (1, 10_000),
    "frames": (1, 100_000),
    "height": (1, 65_536),
    "width": (1, 65_536),
    "guidance": (0, 1_000),
    "fps": (0.01, 999),  # below, a file cannot say it
    "strength": (0, 1),
}


def check_steps(steps: int, least: int) -> None:
    """Raise BadInputError for fewer denoising steps than a pipeline can do."""
    if steps < least:
        raise BadInputError(f"steps must be at least {least}, got {steps}")


def check_number(name: str, value: float) -> None:
    """Make sure that a setting is within ``LIMITS``.

    Raises:
        BadInputError: When it is not; NaN never is.
    """
    least, most = LIMITS[name]
    if not value >= least:
        raise BadInputError(f"{name} must be at least {least:g}, got {value}")
    if not value <= most:
        raise BadInputError(f"{name} must be at most {most:,g}, got {value}")
