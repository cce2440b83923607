"""The ``int8`` engine: scores in INT8, weights and values in FP8, at about 1.4 times bf16's rate.

What is rounded, and how, stands in ``low_bit.py``.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton, why_no_triton
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.low_bit import low_bit_reference
from vidsparse.kernels.plan import BlockPlan

OLDEST = (8, 0)  # compute capability, from which tensor cores multiply INT8
HOPPER = 9
MOST_HEAD_DIM = 256


def int8_unsupported(case: Case) -> list[str]:
    """Why the ``int8`` engine cannot run a case, as sentences; empty when it can."""
    reasons = []
    if case.device_type != "cuda":
        reasons.append(
            f"eight bits gain on a GPU alone, this is on {case.device_type}: leave precision out"
        )
    elif problem := why_no_triton(case.device_type):
        reasons.append(problem)
    if case.needs_grad:
        reasons.append("eight-bit attention gives no gradients")
    return reasons + unfit_for(case)


def unfit_for(case: Case) -> list[str]:
    """What of a case eight bits do not fit on its GPU, whether or not it is here.

    On Hopper small blocks, and elsewhere clusters, would run, but on a kernel that is slower than
    the 16-bit one: that is refused too.
    """
    reasons = []
    if case.head_dim > MOST_HEAD_DIM:
        reasons.append(f"it takes a head_dim up to {MOST_HEAD_DIM}, not {case.head_dim}")
    if case.arch is None:
        return reasons
    if case.arch < OLDEST:
        reasons.append(
            f"this GPU (compute capability {case.arch[0]}.{case.arch[1]}) multiplies no INT8 in "
            "tensor cores; those from 8.0 on do"
        )
    if case.arch[0] == HOPPER:
        return reasons + _unfit_for_hopper(case)
    if case.offsets:
        reasons.append(
            "clusters run in eight bits on Hopper GPUs alone: choose a preset of equal blocks, "
            "such as balanced"
        )
    return reasons


def _unfit_for_hopper(case: Case) -> list[str]:
    if case.head_dim > 128 or case.head_dim % 16:
        return [f"on this GPU it takes a head_dim in sixteens up to 128, not {case.head_dim}"]
    if not case.offsets and (case.q_block % 128 or case.kv_block % 64):
        return [
            f"on this GPU it takes query blocks of 128 tokens, not {case.q_block}, and key blocks "
            f"in 64s, not {case.kv_block}: give block=128"
        ]
    return []


@overload
def low_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan | None = None,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
def low_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]: ...
def low_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Quantise and attend, under a plan or to all keys.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides, float16, bfloat16 or float32.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute, stand-ins included, or None for everything.
        scale: Score scale, positive; ``head_dim ** -0.5`` when None.
        return_lse: Whether to return the log-sum-exp.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype, and the natural log-sum-exp of each row,
        float32 ``(batch, heads, q_len)``, or None. A row without any key is zero, its log-sum-exp
        ``-inf``.

    Raises:
        BadInputError: For another ``impl``, or a head_dim above 256.
    """
    by_triton = use_triton(impl, q)
    if q.shape[-1] > MOST_HEAD_DIM:
        raise BadInputError(
            f"eight-bit attention takes head_dim up to {MOST_HEAD_DIM}, got {q.shape[-1]}"
        )
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    plan = everything(q, k) if plan is None else plan
    run = low_bit_reference
    if by_triton:
        from vidsparse.kernels.triton.low_bit import launch as run
    return run(q, k, v, plan, scale=scale, return_lse=return_lse)


def everything(q: Tensor, k: Tensor) -> BlockPlan:
    """The plan of dense attention, in blocks of 128; q and k are ``(batch, heads, seq, ...)``."""
    rows, columns = -(-q.shape[2] // 128), -(-k.shape[2] // 128)
    index = torch.arange(columns, dtype=torch.int32, device=q.device)
    return BlockPlan(
        kv_count=torch.full((1, 1, rows), columns, dtype=torch.int32, device=q.device),
        kv_index=index.expand(1, 1, rows, -1).contiguous(),
        q_len=q.shape[2],
        kv_len=k.shape[2],
        q_block=128,
        kv_block=128,
    )
