"""vidsparse: sparse attention for diffusers pipelines, unmodified, reversible and measured.

Wrap a pipeline in one line; leaving the block restores it::

    with vidsparse.sparsify(pipe, "balanced") as session:
        video = pipe(prompt).frames[0]
    print(session.summary())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vidsparse.errors import BadInputError, DenseFallbackError, VidsparseError
from vidsparse.grid import TokenGrid

if TYPE_CHECKING:
    from vidsparse.pipelines.session import Session
    from vidsparse.policies.parts import register_part
    from vidsparse.preset import Preset
    from vidsparse.presets import PRESETS, register

__all__ = [
    "PRESETS",
    "BadInputError",
    "DenseFallbackError",
    "Preset",
    "TokenGrid",
    "VidsparseError",
    "register",
    "register_part",
    "session_of",
    "sparsify",
]
__version__ = "0.2.0"
_LATER = {  # these import torch
    "PRESETS": "vidsparse.presets",
    "Preset": "vidsparse.preset",
    "register": "vidsparse.presets",
    "register_part": "vidsparse.policies.parts",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: the command line's help does not wait."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


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
        preset: A name in ``PRESETS``, a preset of your own, or ``FILE.py:NAME`` for one in a file.
            What its authors publish for this model is taken where no parameter says otherwise;
            ``session.preset`` is what runs.
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


def session_of(target: Any) -> Session | None:
    """The session that a diffusers pipeline or a transformer is in; None if there is none.

    Args:
        target: A diffusers pipeline, or a transformer of one.

    Raises:
        BadInputError: When there is no transformer.
    """
    from vidsparse.pipelines.session import session_of  # diffusers is imported here, not before

    return session_of(target)
