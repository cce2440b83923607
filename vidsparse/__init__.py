"""vidsparse: sparse attention for diffusers pipelines, unmodified, reversible and measured.

Wrap a pipeline in one line; leaving the block restores it::

    with vidsparse.sparsify(pipe, "balanced") as session:
        video = pipe(prompt).frames[0]
    print(session.summary())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vidsparse.errors import BadInputError, DenseFallbackError, VidsparseError
from vidsparse.grid import TokenGrid
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS

if TYPE_CHECKING:
    from vidsparse.pipelines.session import Session

__all__ = [
    "PRESETS",
    "BadInputError",
    "DenseFallbackError",
    "Preset",
    "TokenGrid",
    "VidsparseError",
    "sparsify",
]
__version__ = "0.1.0"


def sparsify(
    target: Any,
    preset: str | Preset = "balanced",
    *,
    strict: bool = False,
    engine: str = "auto",
    **parameters: Any,
) -> Session:
    """Make the self-attention of a diffusers pipeline sparse, reversibly and in place.

    Args:
        target: A diffusers pipeline, or a transformer of one.
        preset: A name in ``PRESETS``, or a preset of your own.
        strict: Raise ``DenseFallbackError`` where a call would fall back to dense.
        engine: Kernel engine: "auto", or "triton", "flash", "flex", "xformers", "cpu" or
            "reference"; ``vidsparse doctor`` says which of them run here.
        **parameters: Parameters of the preset to change, such as ``density=0.3``; the command
            ``vidsparse presets NAME`` lists them.

    Returns:
        The session, already active. ``session.remove()`` restores the pipeline, as does leaving
        it as a context manager; ``session.stats`` and ``session.summary()`` say what it did.

    Raises:
        BadInputError: For an unknown preset, parameter, value or model, or a pipeline that
            already has a session; the pipeline is then untouched.
    """
    from vidsparse.pipelines.session import Session  # diffusers is imported here, not before
    from vidsparse.presets import find_preset

    found = find_preset(preset) if isinstance(preset, str) else preset
    return Session(target, found.override(parameters), strict=strict, engine=engine)
