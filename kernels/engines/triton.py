"""The ``triton`` engine: our own kernels, for any block plan. Imports Triton when it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import why_no_triton
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.observe import Observed
from vidsparse.kernels.plan import BlockPlan


def triton_unsupported(case: Case) -> list[str]:
    """Why the ``triton`` engine cannot run a case; empty when it can."""
    reasons = []
    if problem := why_no_triton(case.device_type):
        reasons.append(problem)
    if case.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"triton kernels take fp16, bf16 and fp32, not {case.dtype}")
    if not 1 <= case.head_dim <= 256:
        reasons.append(f"triton kernels take a head_dim up to 256, not {case.head_dim}")
    return reasons


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says; arguments and result as in ``reference_attention``."""
    from vidsparse.kernels.triton.block_sparse import launch

    return launch(q, k, v, plan, scale=scale, return_lse=return_lse)


def observe_triton(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float) -> Observed:
    """Attend and report, in one kernel; as ``observe_reference``."""
    from vidsparse.kernels.triton.block_sparse import observe

    return Observed(*observe(q, k, v, plan, scale=scale))
