"""Which eight-bit kernel runs a call: ``low_bit_hopper.py`` where it can, the portable one else."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.engines.low_bit import key_block_of, quantize
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import low_bit_portable
from vidsparse.kernels.triton.block_sparse import runs_gluon_on_hopper


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Quantise and attend; see ``low_bit_reference``."""
    out = torch.empty_like(q)
    hopper = _hopper(q, out, plan)
    x = quantize(
        q, k, v, scale=scale, key_block=key_block_of(plan),
        value_dtype=value_dtype_of(q.device), interleaved=hopper, impl="triton",
    )  # fmt: skip
    if hopper:
        from vidsparse.kernels.triton import low_bit_hopper

        lse = low_bit_hopper.launch(x, plan, out, return_lse=return_lse)
    else:
        lse = low_bit_portable.launch(x, plan, out, return_lse=return_lse)
    return out, lse


def value_dtype_of(device: torch.device) -> torch.dtype:
    """What a device multiplies values in: e4m3 from compute capability 8.9 on, else float16."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return torch.float8_e4m3fn
    return torch.float16


def _hopper(q: Tensor, out: Tensor, plan: BlockPlan) -> bool:
    """Whether the Hopper kernel can run a call."""
    if not runs_gluon_on_hopper(q):
        return False
    from vidsparse.kernels.triton import low_bit_hopper

    return low_bit_hopper.refuses(out, plan) is None
