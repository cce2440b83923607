"""Which of three kernels of one meaning runs a block plan.

``hopper.py`` for blocks of equal size and ``packed.py`` for others where they can run,
``portable.py`` everywhere else.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vidsparse.kernels.engines.stand_ins import add_skipped
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import portable

OLDEST_GLUON = (3, 6)  # Triton whose Gluon the Hopper kernel is written in and was run with


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run one of them, and stand-ins after it where it does not run them too.

    Arguments and result as in ``reference_attention``; sums in float32, softmax in base 2.
    """
    able = (x for x in _hopper_kernels(q) if x.refuses(q, k, v, plan) is None)
    kernel = next(able, None)
    apart = plan.pooled is not None and (kernel is None or not kernel.TAKES_POOLED)
    need_lse = return_lse or apart
    if kernel is not None:
        out, lse = kernel.launch(q, k, v, plan, scale=scale, return_lse=need_lse)
    else:
        out, lse = portable.launch(q, k, v, plan, scale, need_lse)[:2]
    if apart:
        assert lse is not None
        return add_skipped(q, out, lse, plan, scale=scale, impl="triton")
    return out, lse


def observe(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend and report: output, log-sum-exp and margin as in ``observe_reference``."""
    for kernel in _hopper_kernels(q)[:1]:
        if kernel.refuses(q, k, v, plan) is kernel.cannot_observe(q, plan) is None:
            return kernel.observe(q, k, v, plan, scale=scale)
    out, lse, margin = portable.launch(q, k, v, plan, scale, True, with_margin=True)
    assert lse is not None
    assert margin is not None
    return out, lse, margin


def runs_gluon_on_hopper(q: Tensor) -> bool:
    """Whether Hopper kernels run: not on other devices, nor with a Triton too old for them."""
    if not q.is_cuda or torch.cuda.get_device_capability(q.device)[0] != 9:
        return False
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= OLDEST_GLUON


def _hopper_kernels(q: Tensor) -> tuple[Any, ...]:
    """The modules of Hopper kernels; none where they do not run."""
    if not runs_gluon_on_hopper(q):
        return ()
    from vidsparse.kernels.triton import hopper, packed

    return hopper, packed
