"""Under ``torch.compile`` a layer's attention is one custom op, so that no graph breaks on it.

Compiled blocks share one graph, so the op is told which layer runs by a tensor. What runs inside
it is decided at run time, step by step, and never traced.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from vidsparse.pipelines.asked import Asked, Dense, DenseOf, Layer

SDPA = "torch"  # a call site that calls torch itself instead of a backend of diffusers
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_numbers = itertools.count()


def make_handle(layer: Layer) -> Tensor:
    """A number by which compiled code names a layer, for as long as the layer lives."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number)


def dense_of(
    site: str, causal: bool, scale: float | None, grouped: bool, dropout: float = 0.0
) -> DenseOf:
    """What a model would call, given how diffusers splits the sequence; all as the model asks.

    Args:
        site: ``SDPA``, a backend of diffusers by name, or "" for the one that is active.
        causal: Whether attention is causal.
        scale: Score scale.
        grouped: Whether key heads are shared.
        dropout: Probability.
    """

    def torch_itself(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2)

    def backend(parallel_config: Any) -> Dense:
        name = AttentionBackendName(site) if site else None
        return lambda q, k, v, mask: dispatch_attention_fn(
            q, k, v, mask, dropout, causal, scale, grouped,
            backend=name, parallel_config=parallel_config,
        )  # fmt: skip

    return (lambda _: torch_itself) if site == SDPA else backend


def _tags() -> dict[str, Any]:
    """What runs inside changes from step to step: not for CUDA graphs, where torch can be told."""
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    return {} if unsafe is None else {"tags": [unsafe]}


@torch.library.custom_op("vidsparse::layer", mutates_args=(), **_tags())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    causal: bool,
    grouped: bool,
    unsupported: str,
    site: str,
    is_split: bool,
    handle: Tensor,
) -> Tensor:
    """Let a layer attend; without gradients.

    Args:
        q: ``(batch, seq, heads, head_dim)``, as the other tensors.
        k: Keys.
        v: Values.
        mask: As ``F.scaled_dot_product_attention`` takes it.
        scale: Score scale.
        causal: Whether attention is causal.
        grouped: Whether key heads are shared.
        unsupported: Why this can only be dense; "" where nothing is known against it.
        site: As in ``dense_of``.
        is_split: Whether devices share the sequence.
        handle: From ``make_handle``.
    """
    layer = _layers[int(handle)]
    asked = Asked(mask=mask, scale=scale, unsupported=unsupported or None)
    dense = dense_of(site, causal, scale, grouped)
    out = layer.attend(q, k, v, asked, dense, layer.parallel_config if is_split else None)
    is_new = all(
        out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for x in (q, k, v)
    )
    return out.contiguous() if is_new else out.clone(memory_format=torch.contiguous_format)


@attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any, causal: Any, grouped: Any,
    unsupported: Any, site: Any, is_split: Any, handle: Any,
) -> Tensor:  # fmt: skip
    return q.new_empty(*q.shape[:-1], v.shape[-1])
