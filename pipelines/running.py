"""Which pipeline is running: read from the call stack, where it stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from torch import nn

_NO_PIPELINES = ("torch.", "accelerate.", "vidsparse.", "diffusers.models.", "diffusers.hooks.")


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A pipeline in the middle of a call.

    Attributes:
        pipeline: Whose call it is.
        frame: Of that call; another call of the same pipeline has another one, for as long as
            this one is held.
        inner: The innermost frame of the pipeline's own methods.
    """

    pipeline: Any
    frame: FrameType
    inner: FrameType

    @property
    def is_guided(self) -> bool | None:
        """Whether the pipeline says that it guides; None where it says nothing."""
        said = getattr(self.pipeline, "do_classifier_free_guidance", None)
        if said is None:  # PixArt, AuraFlow and others keep it to themselves
            said = self._local("do_classifier_free_guidance")
        if said is None and hasattr(self.pipeline, "guidance_scale"):
            scale = self.pipeline.guidance_scale
            said = None if scale is None else scale > 1
        return None if said is None else bool(said)

    def _local(self, name: str) -> Any:
        """A variable of the pipeline's call, from the innermost of its methods that has it."""
        frame: FrameType | None = self.inner
        while frame is not None:
            if name in frame.f_locals and frame.f_locals.get("self") is self.pipeline:
                return frame.f_locals[name]
            frame = None if frame is self.frame else frame.f_back
        return None


def find_running(transformer: nn.Module, target: Any = None) -> Running | None:
    """The pipeline that is calling a transformer; None in a loop of the user's own.

    Args:
        transformer: As it is, not as compiled.
        target: A pipeline that has it, of any class; others are pipelines of diffusers.
    """
    pipeline = outer = inner = None
    for frame in _frames_with_self():
        found = frame.f_locals.get("self")
        if pipeline is None and (found is target or _runs(found, transformer)):
            pipeline, inner = found, frame
        if pipeline is not None and found is pipeline:
            outer = frame
    if pipeline is None or outer is None or inner is None or isinstance(pipeline, nn.Module):
        return None
    return Running(pipeline, outer, inner)


def is_running(pipeline: Any) -> bool:
    """Whether one of a pipeline's own methods is being called now."""
    return any(frame.f_locals.get("self") is pipeline for frame in _frames_with_self())


def _frames_with_self() -> Iterator[FrameType]:
    """The frames of methods, from the innermost, outside of what runs no pipeline."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        is_method = frame.f_code.co_varnames[:1] == ("self",)
        if is_method and not frame.f_globals.get("__name__", "").startswith(_NO_PIPELINES):
            yield frame
        frame = frame.f_back


def _runs(found: Any, transformer: nn.Module) -> bool:
    """Whether this is a pipeline of diffusers, modular or not, with that transformer."""
    if not isinstance(found, ConfigMixin) or isinstance(found, nn.Module):
        return False
    held = vars(found)
    return "scheduler" in held and any(
        getattr(part, "_orig_mod", part) is transformer for part in held.values()
    )
