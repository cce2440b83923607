"""Taps: the call sites of attention in diffusers ask which layer is running.

A processor of diffusers calls ``dispatch_attention_fn``, a global of the Python module that defines
the processor. While a session is active that global is a tap: with a current layer it hands the
tensors to it, without one it calls the original. No processor is copied or replaced, and the
user's attention backend stays the dense path.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from typing import Any, Protocol

import torch
from diffusers.models import attention_dispatch
from torch import Tensor

from vidsparse.engine import Dense

_NAME = "dispatch_attention_fn"
_original = attention_dispatch.dispatch_attention_fn
_taps: Counter[str] = Counter()
_lock = threading.Lock()


class Layer(Protocol):
    """A self-attention layer that takes over its own attention."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        unsupported: str | None,
        dense: Dense,
    ) -> Tensor: ...


class _Current(threading.local):
    def __init__(self) -> None:  # a class-level default would break torch.compile's guards
        self.layer: Layer | None = None


current = _Current()


def tap(module: str) -> None:
    """Put the tap into a Python module that calls attention; counted, so sessions can share it."""
    with _lock:
        _taps[module] += 1
        setattr(sys.modules[module], _NAME, _tapped)


def untap(module: str) -> None:
    """Take one tap back; the last one restores the original."""
    with _lock:
        _taps[module] -= 1
        if not _taps[module]:
            del _taps[module]
            setattr(sys.modules[module], _NAME, _original)


def tapped_modules() -> list[str]:
    """The Python modules that hold a tap now."""
    return sorted(_taps)


def can_tap(module: str) -> bool:
    """Whether a Python module calls attention in the way a tap can stand in for."""
    return getattr(sys.modules.get(module), _NAME, None) in (_original, _tapped)


def _tapped(
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

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _original(
            q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
            backend=backend, parallel_config=parallel_config,
        )  # fmt: skip

    layer = current.layer
    if layer is None:
        return dense(query, key, value)
    reasons = {
        "the model passes an attention mask": attn_mask is not None,
        "attention is causal": is_causal,
        "key heads are shared (grouped-query attention)": enable_gqa,
        "attention has dropout": dropout_p > 0,
        "the model passes arguments of its own to the attention backend": bool(attention_kwargs),
        "context parallelism splits the sequence": parallel_config is not None,
    }
    unsupported = next((reason for reason, holds in reasons.items() if holds), None)
    return _attend(layer, query, key, value, scale, unsupported, dense)


@torch.compiler.disable()
def _attend(
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    unsupported: str | None,
    dense: Dense,
) -> Tensor:
    try:
        return layer.attend(query, key, value, scale=scale, unsupported=unsupported, dense=dense)
    except BaseException:  # the hook that clears the layer will not run
        current.layer = None
        raise
