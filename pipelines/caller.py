"""Which pipeline calls a transformer: read from the call stack, where it stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
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


def find_caller(transformer: nn.Module, target: Any = None) -> Caller | None:
    """The pipeline that is calling a transformer; None in a loop of the user's own.

    Args:
        transformer: As it is, not as compiled.
        target: A pipeline that has it, of any class; others are pipelines of diffusers.
    """
    pipeline = outer = inner = None
    own = object() if isinstance(target, nn.Module) else target  # a transformer calls nothing
    for frame in _method_frames(target):
        found = frame.f_locals.get("self")
        if pipeline is None and (found is own or _has(found, transformer)):
            pipeline, inner = found, frame
        if pipeline is not None and found is pipeline:
            outer = frame
    if pipeline is None or outer is None or inner is None:
        return None
    return Caller(pipeline, outer, inner)


def is_calling(pipeline: Any) -> bool:
    """Whether one of a pipeline's own methods is being called now."""
    return any(frame.f_locals.get("self") is pipeline for frame in _method_frames(pipeline))


def _method_frames(target: Any) -> Iterator[FrameType]:
    """The frames of methods of pipelines, from the innermost.

    Told by the names of their code: to look into any other frame would keep alive what it holds.
    """
    own = {cls.__qualname__ for cls in type(target).__mro__} - {"object", "Module"}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_code.co_qualname.rpartition(".")[0]
        if owner and (owner in own or _is_pipeline(frame.f_globals.get(owner))):
            yield frame
        frame = frame.f_back


def _is_pipeline(cls: Any) -> bool:
    is_class = isinstance(cls, type) and issubclass(cls, ConfigMixin)
    return is_class and not issubclass(cls, nn.Module)


def _has(found: Any, transformer: nn.Module) -> bool:
    """Whether this is a pipeline, modular or not, with that transformer."""
    held = vars(found) if _is_pipeline(type(found)) else {}
    return "scheduler" in held and any(
        getattr(part, "_orig_mod", part) is transformer for part in held.values()
    )
