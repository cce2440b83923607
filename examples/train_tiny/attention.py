"""Which of torch's attention kernels is the fastest here, forwards and backwards."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .common import say

_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def choose_attention(tokens: int, *, batch: int = 16, heads: int = 4, width: int = 64) -> None:
    """Time the kernels at this length; cuDNN's is enabled only where it is much the faster."""
    times = {}
    for kernel in _KERNELS:
        try:
            times[kernel.name] = _milliseconds(kernel, (batch, tokens, heads, width))
        except RuntimeError as error:
            say(f"{kernel.name} cannot be used here: {error}")
    say("attention, ms forwards and backwards:", {k: round(v, 2) for k, v in times.items()})
    flash, cudnn_ms = (times.get(kernel.name, float("inf")) for kernel in _KERNELS)
    cudnn = cudnn_ms < 0.85 * flash
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_flash_sdp(not cudnn)


def _milliseconds(kernel: SDPBackend, shape: tuple[int, int, int, int]) -> float:
    q, k, v = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )  # heads after tokens, as the transformer has them
    start = 0.0
    with sdpa_kernel(kernel):
        for repeat in range(13):
            if repeat == 3:
                torch.cuda.synchronize()
                start = time.monotonic()
            turned_q, turned_k, turned_v = (x.transpose(1, 2) for x in (q, k, v))
            made = F.scaled_dot_product_attention(turned_q, turned_k, turned_v)
            made.square().mean().backward()
    torch.cuda.synchronize()
    return 100 * (time.monotonic() - start)
