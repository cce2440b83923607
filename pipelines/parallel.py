"""Context parallelism: diffusers splits the sequence over devices, and we attend to all of it.

Ulysses (DeepSpeed-Ulysses, arXiv 2309.14509) trades tokens for heads: for the time of attention
each device holds every token of its share of the heads. Sparse attention needs no more, since its
plans are made for each head. A budget that heads share is shared among those of one device.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import attention_dispatch
from torch import Tensor

from vidsparse.pipelines.asked import Asked, Dense, Layer


def why_not(parallel_config: Any) -> str | None:
    """Why a way to split the sequence leaves attention dense; None where it does not."""
    context = getattr(parallel_config, "context_parallel_config", None)
    if context is None or context.ring_degree > 1:
        return "ring attention splits the keys among devices: use ulysses_degree"
    return None


@torch.compiler.disable()
def attend_parallel(
    layer: Layer, q: Tensor, k: Tensor, v: Tensor, asked: Asked, dense: Dense, parallel_config: Any
) -> Tensor:
    """Attend over the devices of a Ulysses group; every one of them has to call this.

    Args:
        layer: Attends to all tokens of its share of the heads.
        q: ``(batch, seq / devices, heads, head_dim)``, as the other tensors.
        k: Keys.
        v: Values.
        asked: What the model asks.
        dense: What the model would call on one device.
        parallel_config: Of diffusers.
    """
    devices = parallel_config.context_parallel_config.ulysses_degree

    def forward_op(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *rest: Any, **more: Any):  # noqa: ANN202
        apart = layer.split_apart(q.shape[1])
        q, k, v = (_together(x, apart, devices) for x in (q, k, v))
        whole = Asked(mask=mask, scale=asked.scale)
        return _back(layer.attend(q, k, v, whole, dense), apart, devices)

    out: Any = attention_dispatch._templated_context_parallel_attention(
        q, k, v, asked.mask, 0.0, False, asked.scale, False, False,
        forward_op=forward_op, backward_op=None, _parallel_config=parallel_config,
    )  # fmt: skip
    return out


def _together(x: Tensor, text: int, devices: int) -> Tensor:
    """From text and image of the first device, then of the next, to all text, then all images."""
    if not text:
        return x
    chunks = x.unflatten(1, (devices, -1))
    own = text // devices
    return torch.cat([chunks[:, :, :own].flatten(1, 2), chunks[:, :, own:].flatten(1, 2)], dim=1)


def _back(x: Tensor, text: int, devices: int) -> Tensor:
    if not text:
        return x
    parts = (part.unflatten(1, (devices, -1)) for part in (x[:, :text], x[:, text:]))
    return torch.cat(list(parts), dim=2).flatten(1, 2)
