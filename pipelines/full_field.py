"""A dense pass beside a sparse one, whose cross-attention it replaces: FreeSwim's branch."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.caller import find_caller
from vidsparse.pipelines.compiled import is_compiled
from vidsparse.pipelines.hook import Hook
from vidsparse.pipelines.undo import Undo, drop_hooks

if TYPE_CHECKING:
    from vidsparse.pipelines.forward import Forward

CONDITIONAL = "cond"  # as the pipelines of diffusers name that call
FIRST = "call0"  # where a pipeline names none, the conditional call comes first


class _Mode(Enum):
    """What happens to cross-attention: it is left alone, kept, or replaced by what was kept."""

    LEAVE = auto()
    KEEP = auto()
    REPLACE = auto()


class FullField:
    """The dense passes of one transformer, and what is kept of them.

    FreeSwim, arXiv 2511.14712: windows of the training size see no more than their neighbourhood,
    and repeat the prompt's objects all over a video that is larger. So a branch with full attention
    starts from the same latents, and in the conditional call the output of its cross-attention
    replaces that of the windows, layer by layer. It changes slowly, so it serves a few steps.

    Args:
        forward: Of the transformer, in a session.
        every: A pass serves so many steps.
        fields: Those of all transformers of the session, which run one after the other: only the
            one that runs keeps anything.

    Raises:
        BadInputError: When the transformer has no cross-attention, or its pipelines run both
            branches of guidance in one batch.
    """

    def __init__(self, forward: Forward, every: int, fields: Sequence[FullField]) -> None:
        model = forward.model
        if model.cross_attention is None or model.guidance != "calls":
            raise BadInputError(
                f"full_field does not know {model.name}: it takes Wan 2.1 or 2.2, whose calls have "
                "cross-attention and follow the prompt, or not, as a whole"
            )
        self._forward, self._every, self._fields = forward, every, fields
        self._modules = model.cross_layers(forward.transformer)
        self._mode = _Mode.LEAVE
        self._kept: dict[int, Tensor] = {}
        self._of: tuple[int, torch.Size] | None = None  # the run and the shape of its latents
        self._at = 0  # the step that it was made in

    @property
    def nbytes(self) -> int:
        """Bytes kept now, on the device."""
        return sum(each.nbytes for each in self._kept.values())

    def attach(self, undo: Undo) -> None:
        """Hook into the transformer, after its session, and into its cross-attention."""
        transformer = self._forward.transformer
        before, after = Hook(transformer, self._before), Hook(transformer, self._after)

        def hook() -> None:
            transformer.register_forward_pre_hook(before, with_kwargs=True)
            transformer.register_forward_hook(after, always_call=True)

        undo.do(hook, lambda: drop_hooks(transformer, before, after))
        for index, module in enumerate(self._modules):
            self._attach_across(index, module, undo)
        undo.do(lambda: None, self.forget)

    def _attach_across(self, index: int, module: nn.Module, undo: Undo) -> None:
        hook = Hook(module, lambda args, output: self._across(index, output))
        undo.do(lambda: module.register_forward_hook(hook), lambda: drop_hooks(module, hook))

    def _across(self, index: int, output: Tensor) -> Tensor | None:
        """What a module of cross-attention gives instead of its output; None for that itself."""
        if self._mode is _Mode.KEEP:
            self._kept[index] = output
        return self._kept[index] if self._mode is _Mode.REPLACE else None

    def _before(self, args: Any, kwargs: Any) -> None:
        clock, forward = self._forward.clock, self._forward
        self._mode = _Mode.LEAVE
        if forward.recording is not None:
            raise BadInputError("full_field is for generating: call the model under no_grad()")
        if is_compiled(forward.transformer):
            raise BadInputError("full_field hooks into layers, so they must not be compiled")
        if getattr(forward.transformer, "is_cache_enabled", False):
            raise BadInputError(
                "full_field calls the transformer once more, which its cache would take for "
                "another step: disable_cache() first"
            )
        if not self._is_conditional():
            return
        of = clock.runs, forward.latents_shape(args, kwargs)
        if not clock.known or of != self._of or clock.step - self._at >= self._every:
            self._renew(args, kwargs)
            self._of, self._at = of, clock.step
        self._mode = _Mode.REPLACE

    def _after(self, args: Any, output: Any) -> None:
        self._mode = _Mode.LEAVE

    def _renew(self, args: Any, kwargs: Any) -> None:
        """Run the model's own attention over the same latents, and keep its cross-attention."""
        for field in self._fields:
            field.forget()
        self._mode, self._forward.beside = _Mode.KEEP, True
        try:
            with torch.no_grad():
                self._forward.transformer.forward(*args, **kwargs)
        finally:
            self._mode, self._forward.beside = _Mode.LEAVE, False

    def forget(self) -> None:
        """Free what is kept."""
        self._kept, self._of = {}, None

    def _is_conditional(self) -> bool:
        """Whether this call follows the prompt.

        Raises:
            BadInputError: When nobody says so.
        """
        context = self._forward.clock.context
        if context is not None:
            return context.name == CONDITIONAL
        if find_caller(self._forward.transformer, self._forward.target) is None:
            raise BadInputError(
                "full_field needs to know which call follows the prompt: say it with "
                f'transformer.cache_context("{CONDITIONAL}", step_index=i)'
            )
        return self._forward.clock.branch == FIRST
