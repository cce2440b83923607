"""The ``triton`` engine: block-sparse attention for any block plan.

Two kernels with one meaning: ``hopper.py`` where it can run, ``portable.py`` everywhere else.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vidsparse.kernels.order import attend_in_order
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import portable

OLDEST_GLUON = (3, 6)  # Triton whose Gluon the Hopper kernel is written in and was run with


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    key_length: Tensor | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says, token orders included; pooled stand-ins are not its business.

    Arguments and result as in ``reference_attention``; sums in float32, softmax in base 2.
    """
    hopper = _hopper(q)
    if hopper is not None and hopper.refuses(q, k, v, plan) is None:
        # copies in order cost less than reading out of order: benchmarks/results/planning_h200.json
        return attend_in_order(
            hopper.launch, q, k, v, plan, scale=scale, key_length=key_length, return_lse=return_lse
        )
    return portable.launch(q, k, v, plan, scale, key_length, return_lse)[:2]


def _hopper(q: Tensor):
    """The module of the Hopper kernel; None on other devices and with a Triton too old for it."""
    if not q.is_cuda or torch.cuda.get_device_capability(q.device)[0] != 9:
        return None
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_GLUON:
        return None
    from vidsparse.kernels.triton import hopper

    return hopper
