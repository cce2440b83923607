"""One forward call of a transformer in a session: what it says, and what ran without us."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vidsparse.pipelines import parallel, taps
from vidsparse.pipelines.caller import Caller, find_caller
from vidsparse.pipelines.clock import Clock, read_noise
from vidsparse.pipelines.hook import Hook
from vidsparse.pipelines.layer import Layer
from vidsparse.pipelines.layout import Layout, OnlyDense, Part, key_padding
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.padding import source_of
from vidsparse.pipelines.recompute import Recording, Recordings, in_backward
from vidsparse.pipelines.runs import Reading
from vidsparse.pipelines.stacked import branches_of, copies_in
from vidsparse.sparse_attention import SparseAttention

UNKNOWN = "the token grid of this call is unknown"


class Forward:
    """The forward calls of one transformer: publishes their layout and moves the clock.

    Attributes:
        name: Of the transformer in its pipeline.
        number: Of the forward call.
        recordings: Calls that a backward pass may come back to.
        recording: The call that runs, if it has gradients.
        beside: Whether what runs is a dense pass beside the call, of which nobody is told.
        target: What the session was made for.

    Args:
        name: Of the transformer in its pipeline.
        transformer: In the session.
        model: Its row of the table.
        clock: Of the session.
        attention: Of the session.
        target: What the session was made for.
    """

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        model: Model,
        clock: Clock,
        attention: SparseAttention,
        target: Any,
    ) -> None:
        self.name = name
        self.transformer = transformer
        self.model = model
        self.clock = clock
        self.number = 0
        self.layers = [
            Layer(index, module, self, attention)
            for index, module in enumerate(model.layers(transformer))
        ]
        self._attention = attention
        self.recordings = Recordings()
        self.recording: Recording | None = None
        self.beside = False
        self.target = target
        self._layout: Layout | str = UNKNOWN
        self._cut: tuple[Any, torch.Size, list[Part]] | None = None
        self._stacks: tuple[tuple[str, int], dict[int, int]] = ("run", 0), {}
        self._signature = inspect.signature(type(transformer).forward)
        self._splits_text = False

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Lengths of what context parallelism splits each by itself, of so many tokens."""
        layout = self._layout
        if isinstance(layout, str) or not self._splits_text:
            return (tokens,)
        video = layout.video.tokens
        first = video if self.model.text == "suffix" else layout.text_before(tokens)
        return (first, tokens - first) if 0 < first < tokens else (tokens,)

    def latents_shape(self, args: Any, kwargs: Any) -> torch.Size:
        """Of what a call makes a prediction of, its first entry where that is a list."""
        arguments = self._signature.bind_partial(self.transformer, *args, **kwargs).arguments
        latents = self.model.latents(arguments)
        first = latents[0] if isinstance(latents, list) else latents
        return torch.Size() if first is None else first.shape

    def hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """Before and after the call."""
        module = self.transformer
        return Hook(module, self._before), Hook(module, self._after)

    @torch.compiler.disable()
    def _before(self, args: Any, kwargs: Any) -> None:
        transformer = self.transformer
        taps.current.layer = None  # Ctrl-C inside a layer may have left one
        taps.current.inside = True
        taps.current.entered.clear()
        if in_backward():
            self.recordings.call_again()
            return
        self.number += 1
        arguments = self._signature.bind_partial(transformer, *args, **kwargs).arguments
        self.recording = self.recordings.begin(transformer, arguments.values())
        if self.recording is not None:
            self.clock.finish()  # a training step is a run of its own
        caller = find_caller(transformer, self.target)
        self.clock.begin(self._reading(arguments, caller))
        self._cut = None
        self._splits_text = parallel.splits_text(transformer)
        try:
            branches = self._branches(arguments, caller)
            self._layout = self.model.layout(transformer.config, arguments, branches)
        except OnlyDense as reason:
            self._layout = str(reason)

    @torch.compiler.disable()
    def _after(self, args: Any, output: Any) -> None:
        taps.current.layer = None  # an exception may have left one
        taps.current.inside = False
        if in_backward():
            return
        self.recordings.end(self.recording, output)
        self.recording = None
        if output is None:  # an exception is on its way, out of the pipeline too
            self.clock.finish()
            return
        for layer in self.layers:
            layer.check()

    def _reading(self, arguments: Any, caller: Caller | None) -> Reading:
        found: list[float | None] = []

        def noise() -> float | None:
            if not found:
                given, level = self.model.noise_level(self.transformer.config, arguments)
                found.append(read_noise(given, *(level or (0.0, self._full_noise(caller)))))
            return found[0]

        pipeline = self.target if caller is None else caller.pipeline
        return Reading(
            noise=noise,
            context=self.clock.context,
            caller=caller,
            scheduler=getattr(pipeline, "scheduler", None),
            is_listed=not callable(self.model.noise),
            trains=self.recording is not None,
        )

    def _full_noise(self, caller: Caller | None) -> float:
        """The timestep of pure noise."""
        pipeline = self.target if caller is None else caller.pipeline
        config = getattr(getattr(pipeline, "scheduler", None), "config", {})
        return config.get("num_train_timesteps", 1000)

    def _branches(
        self, arguments: Any, caller: Caller | None
    ) -> Callable[[int], Sequence[tuple[slice, str]]]:
        """How the entries of this call's batch belong to branches of guidance."""
        context = self.clock.context
        may_stack = (
            caller is not None
            and self.model.guidance != "calls"
            and (context is None or context.name == "cond_uncond")
        )
        latents = self.model.latents(arguments)
        says = caller.is_guided if caller is not None and may_stack else False

        def branches(batch: int) -> Sequence[tuple[slice, str]]:
            return branches_of(batch, number(batch), self.model.guidance, self.clock.branch)

        def number(batch: int) -> int:
            if says is False or latents is None or len(latents) != batch:
                return 1
            # A pipeline that says it guides does so in the same way all through a run.
            known_for = "run" if says else "call", self.clock.runs if says else self.number
            if self._stacks[0] != known_for:
                self._stacks = known_for, {}
            found = self._stacks[1]
            if batch not in found:
                found[batch] = copies_in(latents)
            return found[batch]

        return branches

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
            return self._layout.parts(shape, None, turn, singly=self._attention.judges_batches)
        source = source_of(mask)
        if self._cut is None or self._cut[0] is not source or self._cut[1] != shape:
            valid = key_padding(mask, shape, self._layout.own_rows(shape[1]))
            self._cut = source, shape, self._layout.parts(shape, valid, turn)
        return self._cut[2]
