"""What passes between a call site of attention, which asks, and a layer, which answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from vidsparse.head_sharing import HeadShare
from vidsparse.pipelines.recompute import Turn

Dense = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # q, k, v and a mask or None
DenseOf = Callable[[Any], Dense]  # from how diffusers splits the sequence over devices, or None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRequest:
    """What a model asks of attention, beside q, k and v.

    Attributes:
        mask: As ``F.scaled_dot_product_attention`` takes it, or a backend of diffusers; None.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        unsupported: Why this can only be dense, in the user's words; None.
        share: Which of the layer's heads q, k and v hold, where devices share them; None if all.
    """

    mask: Any = None
    scale: float | None = None
    unsupported: str | None = None
    share: HeadShare | None = None


class Layer(Protocol):
    """A self-attention layer that takes over its own attention.

    Attributes:
        handle: Names the layer in compiled code.
    """

    handle: Tensor

    @property
    def turn(self) -> Turn | None:
        """What the latest attention call decided, as long as it can be recomputed."""
        ...

    @property
    def parallel_config(self) -> Any:
        """How diffusers splits the sequence over devices; None where it does not."""
        ...

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        request: AttentionRequest,
        dense: DenseOf,
        parallel_config: Any,
    ) -> Tensor:
        """Attend, on every device that shares the sequence.

        Args:
            q: ``(batch, seq, heads, head_dim)``, as the other tensors, or a piece of the sequence.
            k: Keys.
            v: Values.
            request: What the model asks.
            dense: What the model would call.
            parallel_config: How diffusers splits the sequence; None where it does not.
        """
        ...

    def attend_as(
        self, turn: Turn, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend again as an earlier call decided, on one device."""
        ...
