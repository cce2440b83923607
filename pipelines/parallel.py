"""Context parallelism: diffusers splits the sequence over devices, and we attend to all of it.

Ulysses (DeepSpeed-Ulysses, arXiv 2309.14509) trades tokens for heads: for the time of attention
each device holds every token of its share of the heads. Plans are made for each head there; only a
budget that all heads of a layer share needs the scores of the others. Heads keep different numbers
of blocks, so they are dealt out anew where the devices would have unequal work (db-SP). A ring's
devices, which would pass keys around, trade tokens for heads too: a plan needs all keys of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed._functional_collectives as collectives
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch import Tensor, nn

from vidsparse.errors import BadInputError
from vidsparse.head_sharing import HeadShare, pick, same_work
from vidsparse.pipelines.call import AttentionRequest, Dense
from vidsparse.state import PendingValue
from vidsparse.training import wants_gradients

NO_GRADIENTS = (
    "no gradients flow through sparse attention under context parallelism: train on one device, or "
    "call the model under torch.no_grad()"
)
WORTH = 0.1  # of the mean work: moving q, k, v and the output took what 0.05 saved, on two H200


def splits_text(transformer: nn.Module) -> bool:
    """Whether each device gets a piece of the text and one of the rest, as joint models have it."""
    both = {"hidden_states", "encoder_hidden_states"}
    registries = (vars(module).get("_diffusers_hook") for module in transformer.modules())
    return any(
        isinstance(hook, ContextParallelSplitHook) and both <= set(hook.metadata)
        for registry in registries
        if registry is not None
        for hook in registry.hooks.values()
    )


class Deal:
    """Which heads of one layer each device takes.

    The work of a step decides on the next: all calls of a step are dealt alike, since they may
    share what they remember, and the densities have reached the host by then.
    """

    def __init__(self) -> None:
        self._mesh: Any = None
        self._share: HeadShare | None = None
        self._heard: tuple[Any, PendingValue] | None = None

    def share(self, step: Any, heads: int, context: Any) -> HeadShare:
        """The heads of this device.

        Args:
            step: Something else at every step.
            heads: How many the layer has.
            context: Context parallelism of diffusers, by Ulysses.
        """
        share = self._share
        mesh = context._ulysses_mesh
        if share is None or self._mesh is not mesh or share.number != heads:
            share, self._mesh, self._heard = _in_turn(heads, context), mesh, None
        if self._heard is not None and self._heard[0] != step:
            share, self._heard = better_share(share, self._heard[1].there()), None
        self._share = share
        return share

    def hear(self, step: Any, density: Tensor) -> None:
        """The density of all heads, ``(heads,)``, in a call of this step; or one for all."""
        share = self._share
        if share is not None and len(share.order) == len(density) > share.devices:
            self._heard = step, PendingValue(density)


class Divisible(Protocol):
    """A layer whose heads devices can share."""

    deal: Deal

    @property
    def step(self) -> Any:
        """Something else at every denoising step."""
        ...

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Lengths of what context parallelism splits each by itself, of so many tokens."""
        ...

    def attend_here(
        self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend to all tokens with the heads that are here."""
        ...


def context_of(parallel_config: Any) -> ContextParallelConfig | None:
    """How diffusers splits the sequence of a call over devices; None where it does not."""
    return getattr(parallel_config, "context_parallel_config", None)


def config_of(layer: Any) -> Any:
    """How diffusers splits the sequence of an attention layer; None where it does not."""
    return getattr(getattr(layer, "processor", None), "_parallel_config", None)


def attend_together(
    layer: Divisible,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    request: AttentionRequest,
    dense: Dense,
    context: ContextParallelConfig,
) -> Tensor:
    """Let a layer attend on several devices, all of which have to call this then."""
    if wants_gradients(q, k, v):
        raise BadInputError(NO_GRADIENTS)
    context = _by_heads(context)
    heads = q.shape[2]
    share = layer.deal.share(layer.step, heads, context)
    is_moved = share.order != tuple(range(heads))
    if is_moved:
        q, k, v = (pick(x, share.order, dim=2) for x in (q, k, v))
    is_local = isinstance(request.mask, Tensor) and request.mask.shape[-1] == k.shape[1]

    def forward_op(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *rest: Any, **more: Any):  # noqa: ANN202
        pieces = layer.pieces(q.shape[1])
        q, k, v = (together(x, pieces, share.devices) for x in (q, k, v))
        mask = together(mask, pieces, share.devices, dim=-1) if is_local else mask
        whole = dataclasses.replace(request, mask=mask, share=share)
        return apart(layer.attend_here(q, k, v, whole, dense), pieces, share.devices)

    out: Any = attention_dispatch._templated_context_parallel_attention(
        q, k, v, request.mask, 0.0, False, request.scale, False, False,
        forward_op=forward_op, backward_op=None,
        _parallel_config=ParallelConfig(context_parallel_config=context),
    )  # fmt: skip
    return pick(out, [share.order.index(head) for head in range(heads)], dim=2) if is_moved else out


def _by_heads(context: ContextParallelConfig) -> ContextParallelConfig:
    """The same devices and pieces of the sequence, in one Ulysses group."""
    if context.ring_degree == 1:
        return context
    mesh = context._flattened_mesh
    ulysses = ContextParallelConfig(
        ulysses_degree=mesh.size(), ulysses_anything=context.ring_anything
    )
    ulysses._ulysses_mesh, ulysses._ulysses_local_rank = mesh, mesh.get_local_rank()
    return ulysses


def together(x: Tensor, pieces: Sequence[int], devices: int, dim: int = 1) -> Tensor:
    """From text and image of the first device, then of the next, to all text, then all images.

    Args:
        x: Any shape.
        pieces: Lengths of what is split each by itself, such as text and image, in their order.
        devices: Over how many.
        dim: Where the sequence stands.
    """
    if len(pieces) < 2:
        return x
    lengths = [_split(piece, devices) for piece in pieces]
    chunks = x.split([each[device] for device in range(devices) for each in lengths], dim)
    whole = [chunk for start in range(len(pieces)) for chunk in chunks[start :: len(pieces)]]
    return torch.cat(whole, dim)


def apart(x: Tensor, pieces: Sequence[int], devices: int, dim: int = 1) -> Tensor:
    """The way back from ``together``."""
    if len(pieces) < 2:
        return x
    chunks = x.split([length for piece in pieces for length in _split(piece, devices)], dim)
    return torch.cat([c for device in range(devices) for c in chunks[device::devices]], dim)


def _split(length: int, devices: int) -> list[int]:
    """As ``torch.tensor_split`` cuts, and so diffusers."""
    return [length // devices + (device < length % devices) for device in range(devices)]


def _in_turn(heads: int, context: Any) -> HeadShare:
    """Heads as Ulysses deals them out; the last one fills what places are left."""
    devices = context.ulysses_degree
    places = range(-(-heads // devices) * devices)
    return HeadShare(
        order=tuple(min(place, heads - 1) for place in places),
        devices=devices,
        rank=context._ulysses_local_rank,
        exchange=_exchange(context._ulysses_mesh.get_group(), devices),
    )


def _exchange(group: Any, devices: int) -> Callable[[Tensor], Tensor]:
    def exchange(x: Tensor) -> Tensor:
        as_bytes = x.contiguous().flatten().view(torch.uint8)  # which every network carries
        every = collectives.all_gather_tensor(as_bytes, 0, group)
        every = attention_dispatch._wait_tensor(every)
        return every.view(x.dtype).view(devices, *x.shape)

    return exchange


def better_share(share: HeadShare, density: Tensor) -> HeadShare:
    """Heads dealt anew for these densities, if that saves enough."""
    other = dataclasses.replace(share, order=same_work(density.tolist(), share.devices))
    saved = share.imbalance(density) - other.imbalance(density)
    return other if float(saved) > WORTH else share
