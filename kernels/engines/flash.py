"""flash-attn-4 (package ``flash-attn-4``): its block-sparse kernels, straight from the plan.

Its CuTe kernels mask the end of the sequence in the first block that they take of a list, and they
take lists from the end. Our lists ascend, so a short last block needs no mask function.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.plan import BlockPlan

HEAD_DIMS = (64, 96, 128)


def flash_unsupported(case: Case) -> list[str]:
    """Why the ``flash`` engine cannot run a case; empty when it can."""
    reasons = []
    if problem := _problem():
        reasons.append(problem)
    if case.device_type != "cuda" or case.arch is None or case.arch[0] not in (9, 10):
        reasons.append(
            "flash-attn-4 block sparsity needs a Hopper or Blackwell GPU (sm_90, sm_100)"
        )
    if case.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"flash-attn-4 takes fp16 and bf16, not {case.dtype}")
    if case.head_dim not in HEAD_DIMS:
        reasons.append(f"flash-attn-4 runs head_dim 64, 96 and 128 here, not {case.head_dim}")
    if case.offsets:
        reasons.append("flash-attn-4 cannot run blocks of unequal size")
    reasons += _refused_blocks(case)
    return reasons


def _refused_blocks(case: Case) -> list[str]:
    """Blocks that do not fit its tiles, which its code fixes for each GPU and head_dim."""
    q_step, kv_steps = (
        (256, "a multiple of 128") if case.arch and case.arch[0] == 10 else (128, "128")
    )
    fits = case.kv_block % 128 == 0 if q_step == 256 else case.kv_block == 128
    reasons = []
    if case.head_dim <= 96 and case.q_block % 192 == 0:  # it would take tiles of 192 queries
        reasons.append(f"flash-attn-4 is not run with query blocks of {case.q_block} here")
    elif case.q_block % q_step:
        reasons.append(
            f"flash-attn-4 needs query blocks of a multiple of {q_step}, not {case.q_block}"
        )
    if not fits:
        reasons.append(f"flash-attn-4 needs key blocks of {kv_steps}, not {case.kv_block}")
    return reasons


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says; arguments and result as in ``reference_attention``.

    Only of cases of which ``flash_unsupported`` has nothing to say.
    """
    return _call(q, k, v, scale, return_lse, block_sparse_tensors=_block_sparse_tensors(plan))


def flash_dense(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Dense attention: the baseline of every speed claim.

    Raises:
        BadInputError: When flash-attn-4 is not installed or cannot be imported.
    """
    if problem := _problem():
        raise BadInputError(problem)
    return _call(q, k, v, scale, return_lse)


def _call(
    q: Tensor, k: Tensor, v: Tensor, scale: float, return_lse: bool, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    from flash_attn.cute.interface import flash_attn_func  # pyright: ignore[reportMissingImports]

    rows = (x.detach().transpose(1, 2) for x in (q, k, v))  # our own backward differentiates
    out, lse = flash_attn_func(*rows, softmax_scale=scale, return_lse=return_lse, **kwargs)
    return out.transpose(1, 2), lse if return_lse else None


def _block_sparse_tensors(plan: BlockPlan) -> Any:
    from flash_attn.cute.block_sparsity import (  # pyright: ignore[reportMissingImports]
        BlockSparseTensorsTorch,
    )

    none, nothing = masked_lists(plan)
    return BlockSparseTensorsTorch(
        mask_block_cnt=none,
        mask_block_idx=nothing,
        full_block_cnt=plan.kv_count,
        full_block_idx=plan.kv_index,
        block_size=(plan.q_block, plan.kv_block),
    )


def masked_lists(plan: BlockPlan) -> tuple[Tensor, Tensor]:
    """Lists of blocks that need a mask: none, int32 ``(B|1, H|1, M)`` and ``(B|1, H|1, M, 1)``."""
    none = torch.zeros_like(plan.kv_count)
    return none, none[..., None]


def _problem() -> str | None:
    """Why flash-attn-4 cannot be used, if it cannot."""
    try:
        installed = _installed()
    except Exception as error:  # an older flash-attn shares the folder, and its import may fail
        reason = " ".join(str(error).split())
        return f"flash_attn does not import here: {reason} (install the build for this torch)"
    return None if installed else "flash-attn-4 is not installed (pip install 'vidsparse[flash]')"


def _installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False
