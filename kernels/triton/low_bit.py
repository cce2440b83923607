"""Which of three eight-bit kernels of one meaning runs a block plan.

``low_bit_hopper.py`` for blocks of equal size and ``low_bit_packed.py`` for others where they can
run, ``low_bit_portable.py`` everywhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.engines.low_bit import key_block_of, quantize
from vidsparse.kernels.engines.stand_ins import add_skipped
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
    """Quantise and attend, stand-ins included; see ``low_bit_reference``."""
    out = torch.empty_like(q)
    kernel = _kernel(q, out, plan)
    within = plan.pooled if kernel.TAKES_POOLED else None
    apart = plan.pooled is not None and within is None
    x = quantize(
        q, k, v, scale=scale, key_block=key_block_of(plan), value_dtype=value_dtype_of(q.device),
        layout=kernel.LAYOUT, pooled=within, impl="triton",
    )  # fmt: skip
    lse = kernel.launch(x, plan, out, return_lse=return_lse or apart)
    if apart:
        assert lse is not None
        return add_skipped(q, out, lse, plan, scale=scale, impl="triton")
    return out, lse


def value_dtype_of(device: torch.device) -> torch.dtype:
    """What a device multiplies values in: e4m3 from compute capability 8.9 on, else float16."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return torch.float8_e4m3fn
    return torch.float16


def _kernel(q: Tensor, out: Tensor, plan: BlockPlan) -> Any:
    """The module whose kernel runs a call."""
    if runs_gluon_on_hopper(q):
        from vidsparse.kernels.triton import low_bit_hopper, low_bit_packed

        for kernel in (low_bit_hopper, low_bit_packed):
            if kernel.refuses(out, plan) is None:
                return kernel
    return low_bit_portable
