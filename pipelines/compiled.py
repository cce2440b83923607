"""Under ``torch.compile`` a layer's attention is one custom op, so that no graph breaks on it.

Compiled blocks share one graph, so the op is told which layer runs by a tensor. What runs inside
it is decided at run time, step by step, and never traced. Its backward pass attends again as was
decided then, with gradients.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.call import AttentionRequest, Dense, DenseOf, Layer
from vidsparse.pipelines.parallel import NO_GRADIENTS
from vidsparse.pipelines.recompute import Tokens, autograd_inside_an_op

SDPA = "torch"  # a call site that calls torch itself instead of a backend of diffusers
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_numbers = itertools.count()
_tokens = Tokens()


def is_compiled(transformer: nn.Module) -> bool:
    """Whether a transformer is compiled, or a part of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in transformer.modules()
    )


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
    """Let a layer attend, from compiled code.

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
    return torch.ops.vidsparse.layer(
        q, k, v, mask, scale, causal, grouped, unsupported, site, is_split, handle
    )[0]


@torch.library.custom_op("vidsparse::layer", mutates_args=(), **_tags())
def _layer(
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
) -> tuple[Tensor, Tensor]:
    """The output, and a tensor that names what was decided."""
    layer = _layers[int(handle)]
    request = AttentionRequest(mask=mask, scale=scale, unsupported=unsupported or None)
    dense = dense_of(site, causal, scale, grouped)
    out = layer.attend(q, k, v, request, dense, layer.parallel_config if is_split else None)
    is_new = all(
        out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for x in (q, k, v)
    )
    token = q.new_empty(1)
    _tokens.name(token, layer.turn)
    copy = out.contiguous() if is_new else out.clone(memory_format=torch.contiguous_format)
    return copy, token


@_layer.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: Any, causal: Any, grouped: Any,
    unsupported: Any, site: Any, is_split: Any, handle: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(1)


@torch.library.custom_op("vidsparse::layer_backward", mutates_args=(), **_tags())
def _layer_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    causal: bool,
    grouped: bool,
    unsupported: str,
    site: str,
    handle: Tensor,
    token: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    request = AttentionRequest(mask=mask, scale=scale, unsupported=unsupported or None)
    dense = dense_of(site, causal, scale, grouped)(None)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    with autograd_inside_an_op():
        turn = _tokens.turn(token)
        out = _layers[int(handle)].attend_as(turn, q, k, v, request, dense)
        grads = torch.autograd.grad(out, (q, k, v), grad_out, materialize_grads=True)
    dq, dk, dv = (x.clone(memory_format=torch.contiguous_format) for x in grads)
    return dq, dk, dv


@_layer_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.rest, is_split, handle = inputs
    if is_split:
        raise BadInputError(NO_GRADIENTS)
    ctx.save_for_backward(q, k, v, mask, handle, output[1])


def _differentiate(ctx: Any, grad_out: Tensor, _grad_token: Any) -> tuple[Any, ...]:
    q, k, v, mask, handle, token = ctx.saved_tensors
    grads = torch.ops.vidsparse.layer_backward(grad_out, q, k, v, mask, *ctx.rest, handle, token)
    return *grads, *(None,) * 8


_layer.register_autograd(_differentiate, setup_context=_remember)
