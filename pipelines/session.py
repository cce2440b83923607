"""A session: sparse attention attached to a pipeline, and everything needed to detach it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.hooks.hooks import (
    BaseState,
    CacheContext,
    HookRegistry,
    ModelHook,
    StateManager,
)
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor, nn

from vidsparse.engine import Call, Observer, SparseAttention
from vidsparse.errors import BadInputError
from vidsparse.pipelines import parallel, taps
from vidsparse.pipelines.asked import Asked, Dense, DenseOf
from vidsparse.pipelines.clock import Clock
from vidsparse.pipelines.compiled import make_handle
from vidsparse.pipelines.masks import keep_padding, source_of
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.noise import noise_levels
from vidsparse.pipelines.parallel import Deal
from vidsparse.pipelines.recompute import Recording, Recordings, Turn, in_backward
from vidsparse.pipelines.tokens import Layout, OnlyDense, Part, key_padding
from vidsparse.preset import Preset
from vidsparse.stats import Stats
from vidsparse.training import Take

TRANSFORMERS = ("transformer", "transformer_2")
_PROBE = "_vidsparse_probe"


class Session:
    """Active from the moment it is made until ``remove()``; weights are never touched.

    Use ``vidsparse.sparsify``, which takes presets by name.

    Args:
        target: A diffusers pipeline or one of its transformers.
        preset: What to compute, and when.
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
        models = {name: find_model(module) for name, module in transformers.items()}
        self.preset = preset
        self._attention = SparseAttention(preset, engine=engine, strict=strict)
        self._clock = Clock(
            _train_timesteps(target),
            self._attention.start_generation,
            lambda: noise_levels(getattr(target, "scheduler", None)),
        )
        self._undo: list[Callable[[], None]] = [taps.next_epoch]
        taps.next_epoch()
        try:
            for name, module in transformers.items():
                self._attach(_Forward(name, module, models[name], self._clock, target))
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

    def summary(self) -> str:
        """A few lines on what the session did."""
        return f"{self.preset.name}: {self.stats.summary()}"

    def observe(self, observer: Observer) -> None:
        """Call a function after every sparse attention call, with all it saw and made."""
        self._attention.observers.append(observer)

    def remove(self) -> None:
        """Restore the pipeline; does nothing the second time."""
        taps.current.layer = None
        with ExitStack() as stack:  # which goes on where one of them fails
            while self._undo:
                stack.callback(self._undo.pop(0))

    def __enter__(self) -> Session:
        if not self.active:
            raise BadInputError("this session was removed: call vidsparse.sparsify again")
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _attach(self, forward: _Forward) -> None:
        transformer, model = forward.transformer, forward.model
        layers = model.layers(transformer)
        call_sites = {type(module.processor).__module__ for module in layers}
        if not layers or not all(map(taps.can_tap, call_sites)):
            raise BadInputError(
                f"the {type(transformer).__name__} of this diffusers release keeps its "
                f"self-attention elsewhere (looked for {model.self_attention} calling "
                "attention of diffusers or torch): install diffusers 0.42, or report the release "
                "you use"
            )
        for index, module in enumerate(layers):
            self._undo.append(taps.attach(module, _Layer(index, module, forward, self._attention)))
        for module in model.padded(transformer):
            self._undo.append(keep_padding(module, model.padding_argument))
        before, after = forward.hooks()
        hook = transformer.register_forward_pre_hook(before, with_kwargs=True)
        self._undo.append(hook.remove)
        hook = transformer.register_forward_hook(after, always_call=True)
        self._undo.append(hook.remove)
        self._undo.append(_attach_probe(transformer, self._clock))


def find_transformers(target: Any) -> Mapping[str, nn.Module]:
    """The transformers of a pipeline, or the one that was passed, free of any session.

    Raises:
        BadInputError: When there is none, or one already has a session.
    """
    if isinstance(target, nn.Module):
        found = {"transformer": target}
    else:
        components = getattr(target, "components", {})
        found = {name: components[name] for name in TRANSFORMERS if components.get(name)}
    found = {name: getattr(module, "_orig_mod", module) for name, module in found.items()}
    if len({id(module) for module in found.values()}) < len(found):  # one module in both places
        found.popitem()
    if not found:
        raise BadInputError(
            f"{type(target).__name__} has no transformer: pass a diffusers pipeline or its "
            "transformer"
        )
    if any(isinstance(getattr(m, _PROBE, None), _Empty) for m in found.values()):
        raise BadInputError(
            "this pipeline already has a vidsparse session: remove() it first, or leave its "
            "with block"
        )
    return found


def _train_timesteps(target: Any) -> int:
    config = getattr(getattr(target, "scheduler", None), "config", {})
    return config.get("num_train_timesteps", 1000)


class _Forward:
    """One transformer's forward call: publishes its layout and moves the clock."""

    def __init__(
        self, name: str, transformer: nn.Module, model: Model, clock: Clock, pipeline: Any
    ) -> None:
        self.name = name
        self.transformer = transformer
        self.model = model
        self.clock = clock
        self.number = 0  # of the forward call
        self.recordings = Recordings()
        self.recording: Recording | None = None  # of the call that runs, if it has gradients
        self._pipeline = pipeline
        self._layout: Layout | str = "the token grid of this call is unknown"
        self._cut: tuple[Any, torch.Size, list[Part]] | None = None
        self._signature = inspect.signature(type(transformer).forward)

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Lengths of what context parallelism splits each by itself, of so many tokens."""
        layout = self._layout
        if isinstance(layout, str) or not self._splits_text:
            return (tokens,)
        video = layout.video.tokens
        first = video if self.model.text == "suffix" else layout.text_before(tokens)
        return (first, tokens - first) if 0 < first < tokens else (tokens,)

    def hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Before and after the call; a copy of the transformer, which keeps them, is not meant."""

        @torch.compiler.disable()
        def before(transformer: nn.Module, args: Any, kwargs: Any) -> None:
            if transformer is self.transformer:
                self._before(args, kwargs)

        @torch.compiler.disable()
        def after(transformer: nn.Module, args: Any, output: Any) -> None:
            taps.current.layer = None  # an exception may have left one
            if transformer is self.transformer:
                self.recordings.end(self.recording, output)
                self.recording = None

        return before, after

    def _before(self, args: Any, kwargs: Any) -> None:
        transformer = self.transformer
        taps.current.layer = None  # Ctrl-C inside a layer may have left one
        if in_backward():
            self.recordings.call_again()
            return
        self.number += 1
        arguments = self._signature.bind_partial(transformer, *args, **kwargs).arguments
        self.recording = self.recordings.begin(transformer, arguments.values())
        if self.recording is not None:
            self.clock.finish()  # a training step is a run of its own
        self.clock.begin(*self.model.noise_level(transformer.config, arguments))
        self._cut = None
        self._splits_text = parallel.splits_text(transformer)
        try:
            self._layout = self.model.layout(transformer.config, arguments, self._branches)
        except OnlyDense as reason:
            self._layout = str(reason)

    def parts(self, shape: torch.Size, mask: Any, turn: int = 0) -> list[Part]:
        """Cut an attention call; ``shape`` is of its queries.

        A mask is read once for all layers that share it, which waits for the device.

        Args:
            shape: Of the queries, ``(batch, seq, heads, head_dim)``.
            mask: As the model passes it.
            turn: How often the layer has called attention before, in this forward call.

        Raises:
            OnlyDense: With the reason.
        """
        if isinstance(self._layout, str):
            raise OnlyDense(self._layout)
        if mask is None:
            return self._layout.parts(shape, None, turn)
        source = source_of(mask)
        if self._cut is None or self._cut[0] is not source or self._cut[1] != shape:
            valid = key_padding(mask, shape, self._layout.own_rows(shape[1]))
            self._cut = source, shape, self._layout.parts(shape, valid, turn)
        return self._cut[2]

    def _branches(self, batch: int) -> list[tuple[slice, str]]:
        """The guidance branches of a batch; cond comes first, others share what it planned."""
        if batch % 2 or not self._is_stacked():
            return [(slice(None), self.clock.branch)]
        halves = slice(0, batch // 2), slice(batch // 2, batch)
        cond, uncond = halves if self.model.guidance == "cond first" else reversed(halves)
        return [(cond, "cond"), (uncond, "uncond")]

    def _is_stacked(self) -> bool:
        context = self.clock.context
        if self.model.guidance == "calls" or (context and context.name != "cond_uncond"):
            return False
        is_guided = getattr(self._pipeline, "do_classifier_free_guidance", None)
        if is_guided is None and hasattr(self._pipeline, "guidance_scale"):
            is_guided = self._pipeline.guidance_scale > 1
        return context is not None if is_guided is None else bool(is_guided)


class _Layer:
    """One self-attention layer: says where a call stands and hands it to the engine."""

    def __init__(
        self, index: int, module: nn.Module, forward: _Forward, attention: SparseAttention
    ) -> None:
        self.handle = make_handle(self)
        self._latest: Callable[[], Turn | None] = lambda: None
        self.deal = Deal()
        self._call_number, self._turn = 0, 0
        self._index = index
        self._module: Any = module
        self._forward = forward
        self._attention = attention

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the transformer is not in the session."""

    @property
    def turn(self) -> Turn | None:
        """What the latest attention call decided, as long as it can be recomputed."""
        return self._latest()

    @property
    def step(self) -> tuple[int, int]:
        """Which generation and denoising step."""
        return self._attention.stats.generations, self._forward.clock.step

    @property
    def parallel_config(self) -> Any:
        """How diffusers splits the sequence over devices; None where it does not."""
        return parallel.config_of(self._module)

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Lengths of what context parallelism splits each by itself, of so many tokens."""
        try:
            return self._forward.pieces(tokens)
        except OnlyDense:  # as the call will be told again
            return (tokens,)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: DenseOf, parallel_config: Any
    ) -> Tensor:
        return parallel.attend(self, q, k, v, asked, dense, parallel_config)

    def attend_here(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: Dense) -> Tensor:
        """Attend to all tokens with the heads that are here."""
        if in_backward():
            turn = self._forward.recordings.current().again(self._index)
        else:
            turn = self._next_turn(q, k, asked)
        self._latest = weakref.ref(turn)
        return self.attend_as(turn, q, k, v, asked, dense)

    def attend_as(
        self, turn: Turn, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: Dense
    ) -> Tensor:
        """Attend part by part, as was decided."""
        first, call, take = turn.calls[0]
        if len(turn.calls) == 1 and (call.unsupported or first.covers(q.shape)):
            return self._run(q, k, v, call, take, lambda q, k, v: dense(q, k, v, asked.mask))
        out = v.new_zeros(*q.shape[:-1], v.shape[-1])  # padding is never read
        for part, call, take in turn.calls:
            taken = (part.take(q), part.take(k), part.take(v))
            part.put(out, self._run(*taken, call, take, lambda q, k, v: dense(q, k, v, None)))
            if part.apart is not None:
                rows = q[part.entries, part.apart], k[part.entries], v[part.entries]
                mask = asked.mask[part.entries, ..., part.apart, :]
                out[part.entries, part.apart] = dense(*rows, mask)
        return out

    def _run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: Call,
        take: Take | None,
        dense: Callable[..., Tensor],
    ) -> Tensor:
        out = self._attention(q, k, v, call, dense, take)
        if take is None:
            self.deal.hear(self.step, self._attention.stats.calls[call.key])
        return out

    def _next_turn(self, q: Tensor, k: Tensor, asked: Asked) -> Turn:
        """A call that is made for the first time."""
        if self._call_number != self._forward.number:
            self._call_number, self._turn = self._forward.number, 0
        parts, unsupported = self._parts(q, k, asked)
        self._turn += 1
        turn = Turn([(part, self._call(part, asked, unsupported), None) for part in parts])
        recording = self._forward.recording
        return turn if recording is None else recording.add(self._index, turn)

    def _parts(self, q: Tensor, k: Tensor, asked: Asked) -> tuple[list[Part], str | None]:
        """The parts of a call; or one, and the reason why it can only be dense."""
        unsupported = asked.unsupported
        if unsupported is None and q.shape[1] != k.shape[1]:
            unsupported = f"{q.shape[1]} queries attend to {k.shape[1]} keys"
        if unsupported is None and _skips_scores():
            unsupported = "the guider leaves attention scores out"
        if unsupported is None:
            try:
                return self._forward.parts(q.shape, asked.mask, self._turn), None
            except OnlyDense as reason:
                unsupported = str(reason)
        return [Part.whole(self._forward.clock.branch)], unsupported

    def _call(self, part: Part, asked: Asked, unsupported: str | None) -> Call:
        clock = self._forward.clock
        return Call(
            grid=part.grid,
            layer=self._index,
            step=clock.step,
            sigma=clock.sigma,
            next_sigma=clock.next_sigma,
            branch=part.branch,
            expert=self._forward.name,
            unsupported=unsupported,
            scale=asked.scale,
            sample=part.sample,
            share=asked.share,
        )


def _skips_scores() -> bool:
    """Whether perturbed-attention guidance stands between the model and its attention."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(isinstance(mode, AttentionScoreSkipFunctionMode) for mode in modes)


class _Probe(ModelHook):
    """Hears what the pipeline tells its caches: branch, step, noise level, end of a generation."""

    _is_stateful = True

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.listener = _Listener(clock)  # diffusers finds it among the hook's attributes

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._clock.finish()
        return module


class _Listener(StateManager):
    def __init__(self, clock: Clock) -> None:
        super().__init__(BaseState())
        self._clock = clock

    def set_context(self, context: CacheContext | None) -> None:
        super().set_context(context)
        self._clock.context = context


class _Empty(nn.Module):
    """Holds the probe; a copy of the transformer gets a module without."""

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Module()


def _attach_probe(transformer: nn.Module, clock: Clock) -> Callable[[], None]:
    """Hang the probe on an empty child module, out of every forward chain.

    On the transformer itself a ``ModelHook`` is lost when accelerate re-installs its offload hooks
    after a generation. An empty module has no parameters: state_dict and save_pretrained are as
    before.
    """
    probe = _Empty()
    HookRegistry.check_if_exists_or_initialize(probe).register_hook(_Probe(clock), "vidsparse")
    setattr(transformer, _PROBE, probe)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.invalidate_child_registries_cache()

    def detach() -> None:
        delattr(transformer, _PROBE)
        registry.invalidate_child_registries_cache()

    return detach
