"""One self-attention layer in a session: says where a call stands and hands it to the engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor, nn

from vidsparse.pipelines import parallel, taps
from vidsparse.pipelines.call import AttentionRequest, Dense, DenseOf
from vidsparse.pipelines.compiled import make_handle
from vidsparse.pipelines.layout import OnlyDense, Part
from vidsparse.pipelines.parallel import Deal
from vidsparse.pipelines.recompute import Turn, in_backward
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.training import Take

if TYPE_CHECKING:
    from vidsparse.pipelines.forward import Forward


class Layer:
    """Takes over the attention of one module.

    Attributes:
        handle: Names the layer in compiled code.
        deal: Which heads each device takes.
        module: Whose attention it is.
        index: Of the layer in its transformer, from 0.

    Args:
        index: Of the layer in its transformer, from 0.
        module: Whose attention it is.
        forward: Of its transformer.
        attention: Of the session.
    """

    def __init__(
        self, index: int, module: nn.Module, forward: Forward, attention: SparseAttention
    ) -> None:
        self.handle = make_handle(self)
        self.deal = Deal()
        self._latest: Callable[[], Turn | None] = lambda: None
        self.module: Any = module
        self._call_number, self._turn = 0, 0
        self.index = index
        self._forward = forward
        self._attention = attention
        self._processor = type(getattr(module, "processor", None))

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the transformer is not in the session."""

    def __reduce__(self) -> Any:
        return type(None), ()  # nor is what is saved of it

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
        return parallel.config_of(self.module)

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Lengths of what context parallelism splits each by itself, of so many tokens."""
        try:
            return self._forward.pieces(tokens)
        except OnlyDense:  # as the call will be told again
            return (tokens,)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        request: AttentionRequest,
        dense: DenseOf,
        parallel_config: Any,
    ) -> Tensor:
        if self._forward.beside:
            return dense(parallel_config)(q, k, v, request.mask)
        context = parallel.context_of(parallel_config)
        if context is not None and not request.unsupported:
            return parallel.attend_together(self, q, k, v, request, dense(None), context)
        turn = self._decide(q, k, request)
        return self.attend_as(turn, q, k, v, request, dense(parallel_config))

    def attend_here(
        self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend to all tokens with the heads that are here."""
        return self.attend_as(self._decide(q, k, request), q, k, v, request, dense)

    def _decide(self, q: Tensor, k: Tensor, request: AttentionRequest) -> Turn:
        """What the call computes, decided once: a backward pass that comes back does the same."""
        if in_backward():
            turn = self._forward.recordings.current().again(self.index)
        else:
            turn = self._next_turn(q, k, request)
        self._latest = weakref.ref(turn)
        return turn

    def attend_as(
        self, turn: Turn, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend part by part, as was decided."""
        first, call, take = turn.calls[0]
        if len(turn.calls) == 1 and (call.unsupported or first.covers(q.shape)):
            return self._run(q, k, v, call, take, lambda q, k, v: dense(q, k, v, request.mask))
        out = v.new_zeros(*q.shape[:-1], v.shape[-1])  # padding is never read
        for part, call, take in turn.calls:
            taken = (part.take(q), part.take(k), part.take(v))
            part.put(out, self._run(*taken, call, take, lambda q, k, v: dense(q, k, v, None)))
            if part.apart is not None:
                rows = q[part.entries, part.apart], k[part.entries], v[part.entries]
                mask = request.mask[part.entries, ..., part.apart, :]
                out[part.entries, part.apart] = dense(*rows, mask)
        return out

    def check(self) -> None:
        """Count that the module computed its attention without us in this forward call, if it did.

        A cache that kept the module from computing anything is nobody's loss.

        Raises:
            DenseFallbackError: When the session is strict.
        """
        if self._call_number == self._forward.number or not self._is_replaced():
            return
        processor = getattr(self.module, "processor", None)
        can_tap = taps.can_tap(taps.site_of(processor))
        if id(self.module) in taps.current.entered or not can_tap:
            part = Part.whole(self._forward.clock.branch)
            reason = f"its processor {type(processor).__name__} computes attention by itself"
            self._attention.passed_by(self._call(part, AttentionRequest(), reason))

    def _is_replaced(self) -> bool:
        """Whether what computes attention is not what diffusers put there."""
        processor = getattr(self.module, "processor", None)
        if _is_cached(self.module):
            return False
        has_own_forward = "forward" in vars(self.module) and "_hf_hook" not in vars(self.module)
        is_own = type(processor) is self._processor
        is_own = is_own and taps.site_of(processor).startswith("diffusers.")
        return has_own_forward or not is_own

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

    def _next_turn(self, q: Tensor, k: Tensor, request: AttentionRequest) -> Turn:
        """A call that is made for the first time."""
        if self._call_number != self._forward.number:
            self._call_number, self._turn = self._forward.number, 0
        parts, unsupported = self._parts(q, k, request)
        self._turn += 1
        turn = Turn([(part, self._call(part, request, unsupported), None) for part in parts])
        recording = self._forward.recording
        return turn if recording is None else recording.add(self.index, turn)

    def _parts(
        self, q: Tensor, k: Tensor, request: AttentionRequest
    ) -> tuple[list[Part], str | None]:
        """The parts of a call; or one, and the reason why it can only be dense."""
        unsupported = request.unsupported
        if unsupported is None and q.shape[1] != k.shape[1]:
            unsupported = f"{q.shape[1]} queries attend to {k.shape[1]} keys"
        if unsupported is None and _skips_scores():
            unsupported = "the guider leaves attention scores out"
        if unsupported is None:
            try:
                return self._forward.parts(q.shape, request.mask, self._turn), None
            except OnlyDense as reason:
                unsupported = str(reason)
        return [Part.whole(self._forward.clock.branch)], unsupported

    def _call(self, part: Part, request: AttentionRequest, unsupported: str | None) -> Call:
        clock = self._forward.clock
        return Call(
            grid=part.grid,
            layer=self.index,
            step=clock.step,
            sigma=clock.sigma,
            progress=clock.progress,
            layers=len(self._forward.layers),
            known=clock.known,
            branch=part.branch,
            expert=self._forward.name,
            unsupported=unsupported,
            scale=request.scale,
            sample=part.sample,
            turn=part.turn,
            share=request.share,
        )


def _is_cached(module: nn.Module) -> bool:
    """Whether a cache of diffusers stands before a module's forward call."""
    return bool(getattr(vars(module).get("_diffusers_hook"), "hooks", None))


def _skips_scores() -> bool:
    """Whether perturbed-attention guidance stands between the model and its attention."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(isinstance(mode, AttentionScoreSkipFunctionMode) for mode in modes)
