"""Dense attention at the shape of a run, by every engine that is here: the baseline to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.flash import flash_dense
from vidsparse.metrics.latency import take_turns

STOCK = "diffusers"
ROUNDS = 5
AT_LEAST_MS = 40.0


def time_dense_engines(shape: Sequence[int], dtype: torch.dtype, device: str) -> dict[str, float]:
    """Median milliseconds of one call by engine, the engines taking turns; ``diffusers`` is stock.

    Args:
        shape: ``(batch, tokens, heads, head_dim)``, as diffusers has it.
        dtype: Of q, k and v.
        device: Where they are.
    """
    draw = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=draw, device=device, dtype=dtype) for _ in range(3))
    candidates = {name: call for name, call in _candidates(q, k, v) if _runs(call)}
    times = take_turns(candidates, rounds=ROUNDS, device=device, at_least_ms=AT_LEAST_MS)
    return {name: timing.median for name, timing in times.items()}


def another_engine(device: torch.device) -> tuple[str, AbstractContextManager[Any]]:
    """An engine that sums in another order than the usual one: its name, and where it is taken.

    The plain formula holds every score at once, so a GPU takes the memory-efficient kernel, and the
    formula only where that cannot run: a text encoder's bias of an odd length, for one.
    """
    own = SDPBackend.EFFICIENT_ATTENTION if device.type == "cuda" else SDPBackend.MATH
    engines = list(dict.fromkeys([own, SDPBackend.MATH]))
    name = own.name.lower().removesuffix("_attention")
    return f"{name} attention", sdpa_kernel(engines, set_priority=True)


def _candidates(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Engines that hold no score matrix, by name."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    yield STOCK, lambda: dispatch_attention_fn(q, k, v)
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    backends = [SDPBackend.FLASH_ATTENTION]
    if q.is_cuda:
        backends += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        scale = q.shape[-1] ** -0.5
        yield "flash-attn-4", lambda: flash_dense(query, key, value, scale=scale)
    for backend in backends:

        def call(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value)

        yield f"torch {backend.name.lower().removesuffix('_attention')}", call


def _runs(call: Callable[[], object]) -> bool:
    try:
        call()
    except (RuntimeError, BadInputError):
        return False
    return True
