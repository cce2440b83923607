"""What a pipeline tells its caches, heard by a session: branch, step, noise, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.hooks.hooks import BaseState, CacheContext, HookRegistry, ModelHook, StateManager
from torch import nn

from vidsparse.pipelines.clock import Clock
from vidsparse.pipelines.undo import Undo

if TYPE_CHECKING:
    from vidsparse.pipelines.session import Session

_NAME = "_vidsparse_session"  # attribute of a transformer


class _Hook(ModelHook):
    _is_stateful = True

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.listener = _Listener(clock)  # diffusers finds it among the hook's attributes

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._clock.finish()
        return module

    def __reduce__(self) -> Any:
        """What is copied or saved of it does nothing: diffusers keeps it where copies go."""
        return ModelHook, ()


class _Listener(StateManager):
    def __init__(self, clock: Clock) -> None:
        super().__init__(BaseState())
        self._clock = clock

    def set_context(self, context: CacheContext | None) -> None:
        super().set_context(context)
        self._clock.context = context

    def __reduce__(self) -> Any:
        return StateManager, (BaseState(),)


class Mark(nn.Module):
    """Says which session a transformer is in; what is copied or saved of it is an empty module.

    Args:
        session: The session.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        vars(self)["session"] = session

    def forward(self) -> None:
        """Never called; diffusers keeps it by its name, which what is saved has too."""

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Module()

    def __reduce__(self) -> Any:
        return nn.Module, ()


def listen(transformer: nn.Module, session: Session, clock: Clock, undo: Undo) -> None:
    """Mark a transformer, and hear what its pipeline says.

    The hook hangs on an empty child module, out of every forward chain: on the transformer itself a
    ``ModelHook`` is lost when accelerate re-installs its offload hooks after a generation. An empty
    module has no parameters: state_dict and save_pretrained are as before.
    """
    mark = Mark(session)
    HookRegistry.check_if_exists_or_initialize(mark).register_hook(_Hook(clock), "vidsparse")
    registry = HookRegistry.check_if_exists_or_initialize(transformer)

    def attach() -> None:
        setattr(transformer, _NAME, mark)
        registry.invalidate_child_registries_cache()

    def detach() -> None:
        if getattr(transformer, _NAME, None) is mark:
            delattr(transformer, _NAME)
        registry.invalidate_child_registries_cache()

    undo.do(attach, detach)


def session_in(transformer: nn.Module) -> Session | None:
    """The session that a transformer is in."""
    mark = getattr(transformer, _NAME, None)
    return vars(mark)["session"] if isinstance(mark, Mark) else None
