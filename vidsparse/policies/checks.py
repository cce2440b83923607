"""What several parts check of their parameters, in the same words."""

from __future__ import annotations

from vidsparse.errors import BadInputError


def check_sizes(part: object, *names: str) -> None:
    """Raise BadInputError for the first of these parameters that is below 1; None is no size."""
    for name in names:
        size = getattr(part, name)
        if size is not None and size < 1:
            raise BadInputError(f"{name} must be at least 1, got {size}")


def check_overlap(overlap: float) -> None:
    """Raise BadInputError for a share of a block's pairs that is none, or more than all."""
    if not 0 < overlap <= 1:
        raise BadInputError(f"overlap must be in (0, 1], got {overlap}")
