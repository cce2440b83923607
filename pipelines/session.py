"""A session: sparse attention attached to a pipeline, and everything needed to detach it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines import taps
from vidsparse.pipelines.caller import is_calling
from vidsparse.pipelines.clock import Clock
from vidsparse.pipelines.forward import Forward
from vidsparse.pipelines.full_field import FullField
from vidsparse.pipelines.listener import listen, session_in
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.padding import keep_padding
from vidsparse.pipelines.published import apply
from vidsparse.pipelines.undo import Undo, drop_hooks
from vidsparse.preset import Preset
from vidsparse.sparse_attention import Observer, SparseAttention
from vidsparse.stats import Stats

TRANSFORMERS = ("transformer", "transformer_2")


class Session:
    """Active from the moment it is made until ``remove()``; weights are never touched.

    Use ``vidsparse.sparsify``, which takes presets by name.

    Attributes:
        preset: What to compute, and when, with what is published of it for this model.
        layers: Self-attention layers of each transformer by its name, and heads of a layer, None
            where they differ.

    Args:
        target: A diffusers pipeline or one of its transformers.
        preset: What was asked for.
        strict: Raise where a call would fall back to dense.
        engine: Kernel engine.

    Raises:
        BadInputError: When there is no transformer, an unknown one, or one that already has a
            session. Nothing is patched then.
    """

    def __init__(
        self, target: Any, preset: Preset, *, strict: bool = False, engine: str = "auto"
    ) -> None:
        transformers = find_transformers(target)
        if isinstance(target, nn.Module):  # as it is, not as compiled
            (target,) = transformers.values()
        if any(session_in(module) for module in transformers.values()):
            raise BadInputError(
                "this pipeline already has a vidsparse session: remove() it first "
                "(vidsparse.session_of finds it), or leave its with block"
            )
        models = {name: find_model(module) for name, module in transformers.items()}
        preset, said = apply(preset, _release(target, transformers))
        self.preset = preset
        self._target = target
        self._transformers = transformers
        self._attention = SparseAttention(preset, engine=engine, strict=strict)
        if said:
            self.stats.notes[said] = None
        self._clock = Clock(
            self._attention.start_generation,
            self._attention.start_run,
            lambda note: self.stats.notes.update({note: None}),
        )
        self._undo = Undo()
        self._full_fields: list[FullField] = []
        self._forwards = forwards = [
            Forward(name, module, models[name], self._clock, self._attention, target)
            for name, module in transformers.items()
        ]
        for forward in forwards:
            _check_layers(forward)
        self.layers = {each.name: (len(each.layers), _heads(each)) for each in forwards}
        if preset.schedule.budgets is not None:
            preset.schedule.budgets.check(self.layers)
        for found in preset.of_model:
            found.check_model(self.layers)
        try:
            modules = list(transformers.values())
            self._undo.do(lambda: taps.begin(self, modules), lambda: taps.end(self))
            for forward in forwards:
                self._attach(forward)
            taps.watch(self._meet_stranger, self._undo)
        except BaseException:
            self.remove()
            raise

    @property
    def stats(self) -> Stats:
        """Density per step, layer and head, time and fallbacks; of the latest generation."""
        return self._attention.stats

    @property
    def active(self) -> bool:
        return bool(self._undo)

    @property
    def notes(self) -> list[str]:
        """What the user should read, such as what had to be assumed."""
        self._note_replaced()
        return list(self.stats.notes)

    def summary(self) -> str:
        """A few lines on what the session did, and its notes."""
        self._note_replaced()
        asked = self.preset.policy.mean_density
        dial = "" if asked is None else f" (mean density {asked:g} asked for)"
        return f"{self.preset.name}{dial}: {self.stats.summary()}"

    def observe(self, observer: Observer) -> None:
        """Call a function after every sparse attention call, with all it saw and made."""
        self._attention.observers.append(observer)

    def full_field(self, every: int = 2) -> None:
        """Run a dense pass beside the conditional call, whose cross-attention replaces that one's.

        FreeSwim, arXiv 2511.14712, for videos larger than a model was trained at, beside preset
        ``freeswim`` or any other. It lasts until ``remove()``. A pass takes the time of a dense
        forward call, is in no density, and keeps one tensor of hidden states for each layer on the
        device.

        Args:
            every: A pass serves so many steps, at least 1.

        Raises:
            BadInputError: When the transformer has no cross-attention that is known, or there is
                a full field already; while it runs, under a cache of diffusers, in compiled
                layers, with gradients, or where nobody says which call is conditional.
        """
        if every < 1:
            raise BadInputError(f"a dense pass serves at least 1 step, got every={every}")
        if not self.active:
            raise BadInputError("this session was removed: call vidsparse.sparsify again")
        if self._full_fields:
            raise BadInputError("this session has a full field already: remove() it first")
        fields: list[FullField] = []
        fields += [FullField(forward, every, fields) for forward in self._forwards]
        self._full_fields = fields
        for field in fields:
            field.attach(self._undo)
        steps = "every step" if every == 1 else f"every {every} steps"
        self.stats.notes[
            f"a dense pass runs beside the conditional call once in {steps}, and its "
            "cross-attention replaces that call's: it is in the time, and in no density"
        ] = None

    def remove(self) -> None:
        """Restore the pipeline; does nothing the second time.

        Ctrl-C waits until that is done.
        """
        taps.current.layer = None
        self._clock.finish()
        self._undo.run()

    def __enter__(self) -> Session:
        if not self.active:
            raise BadInputError("this session was removed: call vidsparse.sparsify again")
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _attach(self, forward: Forward) -> None:
        transformer, model, undo = forward.transformer, forward.model, self._undo
        listen(transformer, self, self._clock, undo)
        for layer in forward.layers:
            taps.attach(layer.module, layer, undo)
        for module in model.padded(transformer):
            keep_padding(module, model.padding_argument, undo)
        before, after = forward.hooks()

        def hook() -> None:
            transformer.register_forward_pre_hook(before, with_kwargs=True)
            transformer.register_forward_hook(after, always_call=True)

        undo.do(hook, lambda: drop_hooks(transformer, before, after))

    def _note_replaced(self) -> None:
        """Note the pipeline's transformers that are no longer those of the session."""
        if self._target in self._transformers.values() or not self.active:
            return
        now = getattr(self._target, "components", {})
        for name, module in self._transformers.items():
            if getattr(now.get(name), "_orig_mod", now.get(name)) is not module:
                self.stats.notes.setdefault(_assigned_anew(name))

    def _meet_stranger(self) -> None:
        """Count an attention call of a transformer that was put in the place of the session's."""
        held = vars(self._target) if hasattr(self._target, "__dict__") else {}
        for name, module in self._transformers.items():
            there = held.get(name, module)
            if getattr(there, "_orig_mod", there) is not module and is_calling(self._target):
                self._attention.fall_back_unseen(_assigned_anew(name))


def _assigned_anew(name: str) -> str:
    return (
        f"{name} was assigned anew in the session, which does not have the new one: remove() the "
        "session and call vidsparse.sparsify again"
    )


def _release(target: Any, transformers: Mapping[str, nn.Module]) -> str | None:
    """Which model this is, where settings are published for it."""
    experts = None if isinstance(target, nn.Module) else len(transformers)
    first = next(iter(transformers.values()))
    return find_model(first).release(first, experts)


def _heads(forward: Forward) -> int | None:
    """Heads of every layer; None where the modules do not say, or differ."""
    found = {getattr(layer.module, "heads", None) for layer in forward.layers}
    return found.pop() if len(found) == 1 else None


def _check_layers(forward: Forward) -> None:
    """Raise BadInputError where self-attention cannot be tapped, saying what was found."""
    transformer, model = forward.transformer, forward.model
    name = type(transformer).__name__
    if not forward.layers:
        raise BadInputError(
            f"the {name} of this diffusers release has no modules {model.self_attention}, where "
            "its self-attention was: install diffusers 0.42, or report the release you use"
        )
    for layer in forward.layers:
        processor = getattr(layer.module, "processor", None)
        site = taps.site_of(processor)
        if not taps.can_tap(site):
            raise BadInputError(
                f"the attention of layer {layer.index} of {name} has the processor "
                f"{type(processor).__name__} of {site}, which does not call attention "
                "through diffusers or torch.nn.functional as F: vidsparse could not reach it; set "
                "the processor of diffusers before sparsify"
            )


def session_of(target: Any) -> Session | None:
    """The session that a pipeline or a transformer is in; None if there is none."""
    found = [session_in(module) for module in find_transformers(target).values()]
    return next((session for session in found if session is not None), None)


def find_transformers(target: Any) -> Mapping[str, nn.Module]:
    """The transformers of a pipeline, or the one that was passed.

    Raises:
        BadInputError: When there is none.
    """
    if isinstance(target, nn.Module):
        found = {"transformer": target}
    else:
        components = getattr(target, "components", {})
        held = {name: components.get(name) for name in TRANSFORMERS}
        found = {name: module for name, module in held.items() if module is not None}
    found = {name: getattr(module, "_orig_mod", module) for name, module in found.items()}
    if len({id(module) for module in found.values()}) < len(found):  # one module in both places
        found.popitem()
    if not found:
        raise BadInputError(
            f"{type(target).__name__} has no transformer: pass a diffusers pipeline or its "
            "transformer"
        )
    return found
