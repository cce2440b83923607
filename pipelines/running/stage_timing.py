"""Where the time of a generation goes, dense or sparse, and what its latents were on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vidsparse.pipelines import parallel, taps
from vidsparse.pipelines.call import AttentionRequest, Dense, DenseOf, Layer
from vidsparse.pipelines.compiled import make_handle
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.recompute import Turn
from vidsparse.pipelines.running.watched import Watched
from vidsparse.pipelines.session import find_transformers
from vidsparse.pipelines.undo import Undo, drop_hooks
from vidsparse.stats import Stopwatch

LATENTS = 1 << 16  # values of each step that are kept


class Probe:
    """Times the stages of one generation with hooks, which a ``with`` block takes away again.

    Stages are timed by the clock of the device, and nothing waits for it until they are read. Make
    it after a session, if there is one: it times what the session does in place of attention.

    Attributes:
        latents: Of each step, the same sample of the latents after it, float32 ``(values,)``; none
            where a pipeline steps copies of its scheduler alone.
        shape: Of the queries, ``(batch, tokens, heads, head_dim)``; None before the first call.

    Args:
        pipe: A diffusers video pipeline.

    Raises:
        BadInputError: For a transformer that vidsparse does not know.
    """

    def __init__(self, pipe: Any) -> None:
        self.latents: list[Tensor] = []
        self.shape: tuple[int, ...] | None = None
        self._device = torch.device(getattr(pipe, "_execution_device", pipe.device))
        self._watches: dict[str, list[Stopwatch]] = {"text_encoder": [], "attention": [], "vae": []}
        self._undo = Undo()
        try:
            modules = list(find_transformers(pipe).values())
            self._undo.do(lambda: taps.begin(self, modules), lambda: taps.end(self))
            self._attach(pipe)
        except BaseException:
            self.remove()
            raise

    @property
    def seconds(self) -> dict[str, float]:
        """Time in ``text_encoder``, in self-``attention`` and in ``vae``; waits for a GPU."""
        return {name: sum(w.seconds for w in each) for name, each in self._watches.items()}

    def forget(self) -> None:
        """Forget what was timed until now."""
        self.latents.clear()
        for watches in self._watches.values():
            watches.clear()

    def remove(self) -> None:
        """Take the hooks away; does nothing the second time."""
        self._undo.run()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _attach(self, pipe: Any) -> None:
        for layer in self_attention(pipe):
            timed = _Timed(layer, taps.layer_of(layer), self._note_attention)
            taps.attach(layer, timed, self._undo)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if isinstance(pipe.components.get(name), nn.Module):
                self._attach_module("text_encoder", pipe.components[name])
        self._replace(pipe.vae, "decode", self._timed("vae", pipe.vae.decode))
        step = Watched(pipe.scheduler.step, lambda made: self.latents.append(_sample(made[0])))
        self._replace(pipe.scheduler, "step", step)

    def _note_attention(self, q: Tensor, watch: Stopwatch) -> None:
        self.shape = tuple(q.shape)
        self._watches["attention"].append(watch)

    def _attach_module(self, stage: str, module: nn.Module) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            self._watches[stage].append(Stopwatch(self._device).__enter__())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._watches[stage][-1].__exit__()

        def hook() -> None:
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)

        self._undo.do(hook, lambda: drop_hooks(module, enter, leave))

    def _timed(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(self._device) as watch:
                made = method(*args, **kwargs)
            self._watches[stage].append(watch)
            return made

        return call

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        """Put a method on one object, over the one of its class or over one put there before."""
        before = vars(owner).get(name)

        def restore() -> None:
            if before is None:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = before

        self._undo.do(lambda: vars(owner).update({name: method}), restore)


class _Timed:
    """A self-attention layer whose attention, dense or a session's, is timed."""

    def __init__(
        self, module: nn.Module, layer: Layer | None, note: Callable[[Tensor, Stopwatch], None]
    ) -> None:
        self.handle = make_handle(self)
        self._module = module
        self._layer = layer
        self._note = note

    @property
    def parallel_config(self) -> Any:
        """How diffusers splits the sequence over devices; None where it does not."""
        return parallel.config_of(self._module)

    @property
    def turn(self) -> Turn | None:
        """What the latest attention call decided, as long as it can be recomputed."""
        return None if self._layer is None else self._layer.turn

    def attend_as(
        self, turn: Turn, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend again as an earlier call decided; that is not a stage of a generation."""
        assert self._layer is not None  # who made the turn
        return self._layer.attend_as(turn, q, k, v, request, dense)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        request: AttentionRequest,
        dense: DenseOf,
        parallel_config: Any,
    ) -> Tensor:
        with Stopwatch(q.device) as watch:
            if self._layer is None:
                out = dense(parallel_config)(q, k, v, request.mask)
            else:
                out = self._layer.attend(q, k, v, request, dense, parallel_config)
        self._note(q, watch)
        return out


def self_attention(pipe: Any) -> Iterator[Any]:
    """The self-attention layers of all transformers of a pipeline, each once."""
    for transformer in find_transformers(pipe).values():
        yield from find_model(transformer).layers(transformer)


def _sample(latents: Tensor) -> Tensor:
    """Evenly spaced values, copied, on the device they are on."""
    flat = latents.detach().flatten()
    return flat[:: -(-flat.numel() // LATENTS)].to(torch.float32, copy=True)
