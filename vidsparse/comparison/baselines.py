"""Dense attention at the shape of a run, by every engine that is here: the baseline to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.current_gpu import current
from vidsparse.errors import BadInputError
from vidsparse.kernels.dense import FLASH, TORCH, dense_attention
from vidsparse.metrics.latency import take_turns
from vidsparse.metrics.report.words import STOCK

FLASH_4, CUDNN, PLAIN, OWN = "flash-attn-4", "torch cudnn", "torch", "vidsparse"
TRITON = "triton"  # our own kernel, on a plan that keeps everything
LABELS = {FLASH: FLASH_4, TRITON: OWN, **{name: name.replace("-", " ") for name in TORCH}}
"""What dense engines are called in tables."""
ROUNDS = 5
AT_LEAST_MS = 40.0
DenseCall = Callable[[], object]


def dense_calls(q: Tensor, k: Tensor, v: Tensor) -> dict[str, DenseCall]:
    """Dense attention by every engine that holds no score matrix, by name; not all may run here.

    Args:
        q: ``(batch, heads, seq, head_dim)``.
        k: The same shape.
        v: The same shape.

    Returns:
        ``torch`` is what PyTorch chooses itself; flash-attn-4 is there on a GPU alone, as are two
        of PyTorch's.
    """
    scale = q.shape[-1] ** -0.5
    calls: dict[str, DenseCall] = {PLAIN: partial(F.scaled_dot_product_attention, q, k, v)}
    for engine in (FLASH, *TORCH) if q.is_cuda else ("torch-flash",):
        calls[LABELS[engine]] = partial(dense_attention, engine, q, k, v, scale=scale)
    return calls


def time_dense_engines(shape: Sequence[int], dtype: torch.dtype, device: str) -> dict[str, float]:
    """Median milliseconds of one call by engine, the engines taking turns.

    ``diffusers`` is stock, ``vidsparse`` our own kernel on a plan that keeps everything.

    Args:
        shape: ``(batch, tokens, heads, head_dim)``, as diffusers has it.
        dtype: Of q, k and v.
        device: Where they are.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    draw = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=draw, device=device, dtype=dtype) for _ in range(3))
    calls: dict[str, DenseCall] = {STOCK: lambda: dispatch_attention_fn(q, k, v)}
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    calls |= dense_calls(*turned)
    del calls[PLAIN]  # which is what diffusers calls
    if q.is_cuda:  # a user can take it as well (dense=triton), so what is sparse has to beat it
        calls[OWN] = partial(dense_attention, TRITON, *turned, scale=q.shape[-1] ** -0.5)
    with current(device):
        able = {name: call for name, call in calls.items() if runs(call)}
        times = take_turns(able, rounds=ROUNDS, device=device, at_least_ms=AT_LEAST_MS)
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


def runs(call: DenseCall) -> bool:
    """Whether an engine can do a call."""
    try:
        call()
    except (RuntimeError, BadInputError):
        return False
    return True
