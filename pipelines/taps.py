"""Taps: the call sites of attention in diffusers ask which layer is running.

A processor of diffusers calls ``dispatch_attention_fn``, or ``F.scaled_dot_product_attention``;
both names are globals of the Python module that defines the processor. While a session is active
they are taps: with a current layer they hand it the tensors, without one they call the original.
No processor is copied or replaced, and the user's attention backend stays the dense path.
"""

from __future__ import annotations

import sys
import threading
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from torch import Tensor

Dense = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # q, k, v and a mask or None

_lock = threading.Lock()
_taps: Counter[str] = Counter()


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
    """A self-attention layer that takes over its own attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: Dense) -> Tensor:
        """Tensors ``(batch, seq, heads, head_dim)``; ``dense`` is what the model would call."""
        ...


class _Current(threading.local):
    def __init__(self) -> None:  # a class-level default would break torch.compile's guards
        self.layer: Layer | None = None


current = _Current()


def tap(module: str) -> None:
    """Put the taps into a Python module that calls attention; counted, so sessions can share it."""
    with _lock:
        _taps[module] += 1
        _swap(module, {name: (original, tapped) for name, original, tapped in _globals()})


def untap(module: str) -> None:
    """Take one tap back; the last one restores the originals."""
    with _lock:
        _taps[module] -= 1
        if not _taps[module]:
            del _taps[module]
            _swap(module, {name: (tapped, original) for name, original, tapped in _globals()})


def tapped_modules() -> list[str]:
    """The Python modules that hold a tap now."""
    return sorted(_taps)


def can_tap(module: str) -> bool:
    """Whether a Python module calls attention in a way that a tap can stand in for."""
    found = vars(sys.modules[module]) if module in sys.modules else {}
    return any(found.get(name) is each for name, *versions in _globals() for each in versions)


def _swap(module: str, names: dict[str, tuple[Any, Any]]) -> None:
    found = vars(sys.modules[module])
    found.update({name: new for name, (old, new) in names.items() if found.get(name) is old})


def _globals() -> tuple[tuple[str, Any, Any], ...]:
    """Name, original and tap of the globals through which processors call attention."""
    return (("dispatch_attention_fn", _dispatch, _tapped_dispatch), ("F", F, _functional))


_dispatch = attention_dispatch.dispatch_attention_fn


def _tapped_dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """``dispatch_attention_fn`` with the same signature; tensors ``(batch, seq, heads, dim)``."""

    def dense(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return _dispatch(
            q, k, v, mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
            backend=backend, parallel_config=parallel_config,
        )  # fmt: skip

    layer = current.layer
    if layer is None:
        return dense(query, key, value, attn_mask)
    reasons = {
        **_unsupported(is_causal, enable_gqa, dropout_p),
        "the model passes arguments of its own to the attention backend": bool(attention_kwargs),
        "context parallelism splits the sequence": parallel_config is not None,
    }
    return _attend(layer, query, key, value, _asked(attn_mask, scale, reasons), dense)


def _tapped_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` for older processors; ``(batch, heads, seq, dim)``."""

    def dense(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return out.transpose(1, 2)

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    layer = current.layer
    if layer is None:
        return dense(q, k, v, attn_mask).transpose(1, 2)
    asked = _asked(attn_mask, scale, _unsupported(is_causal, enable_gqa, dropout_p))
    return _attend(layer, q, k, v, asked, dense).transpose(1, 2)


def _proxy() -> types.ModuleType:
    """``torch.nn.functional`` with one function changed, for modules that import it as ``F``."""
    proxy = types.ModuleType("vidsparse_functional")
    vars(proxy).update({k: v for k, v in vars(F).items() if not k.startswith("__")})
    vars(proxy)["scaled_dot_product_attention"] = _tapped_sdpa
    sys.modules[proxy.__name__] = proxy  # torch.compile resolves modules by name
    return proxy


_functional = _proxy()


def _unsupported(is_causal: bool, enable_gqa: bool, dropout_p: float) -> dict[str, bool]:
    return {
        "attention is causal": is_causal,
        "key heads are shared (grouped-query attention)": enable_gqa,
        "attention has dropout": dropout_p > 0,
    }


def _asked(mask: Any, scale: float | None, reasons: dict[str, bool]) -> Asked:
    unsupported = next((reason for reason, holds in reasons.items() if holds), None)
    return Asked(mask=mask, scale=scale, unsupported=unsupported)


@torch.compiler.disable()
def _attend(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, asked: Asked, dense: Dense
) -> Tensor:
    try:
        return layer.attend(query, key, value, asked, dense)
    except BaseException:  # the hook that clears the layer will not run
        current.layer = None
        raise
