"""What passes between a call site of attention, which asks, and a layer, which answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Dense = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # q, k, v and a mask or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a model asks of attention, beside q, k and v.

    Attributes:
        mask: As ``F.scaled_dot_product_attention`` takes it, or a backend of diffusers; None.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        unsupported: Why this can only be dense, in the user's words; None.
    """

    mask: Any = None
    scale: float | None = None
    unsupported: str | None = None


class Layer(Protocol):
    """A self-attention layer that takes over its own attention.

    Attributes:
        handle: Names the layer in compiled code.
    """

    handle: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: Dense) -> Tensor:
        """Tensors ``(batch, seq, heads, head_dim)``; ``dense`` is what the model would call."""
        ...

    def split_apart(self, tokens: int) -> int:
        """How many text tokens context parallelism splits apart from the others, of so many."""
        ...
