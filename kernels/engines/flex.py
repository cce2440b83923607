"""FlexAttention, part of torch: any GPU, compiled by inductor, no mask function needed."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flash import masked_lists
from vidsparse.kernels.plan import WORD, BlockPlan

SHAPES = 256  # that may be compiled in one process


def flex_unsupported(case: Case) -> list[str]:
    """Why the ``flex`` engine cannot run a case; empty when it can."""
    reasons = []
    if case.device_type != "cuda":
        reasons.append("FlexAttention honours block lists only when compiled for a CUDA device")
    if case.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"FlexAttention takes fp16, bf16 and fp32, not {case.dtype}")
    if case.head_dim < 16 or case.head_dim > 256:
        reasons.append(f"FlexAttention runs a head_dim from 16 to 256, not {case.head_dim}")
    if case.offsets:
        reasons.append("FlexAttention cannot run blocks of unequal size")
    for name, block in (("query", case.q_block), ("key", case.kv_block)):
        if block % 128:
            reasons.append(f"FlexAttention needs {name} blocks of a multiple of 128, not {block}")
    return reasons


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says; arguments and result as in ``reference_attention``.

    Compiled at the first call of a shape, which takes seconds. Only of cases of which
    ``flex_unsupported`` has nothing to say.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
        out, aux = _compiled()(
            *(x.detach() for x in (q, k, v)),  # our own backward differentiates
            block_mask=block_mask(plan),
            scale=scale,
            return_aux=AuxRequest(lse=return_lse),
        )
    return out, aux.lse if return_lse else None


def block_mask(plan: BlockPlan) -> Any:
    """The plan as FlexAttention's ``BlockMask``: its full blocks need no mask function.

    Where the last block is short the compiled kernel stops at the end of the sequence itself.
    """
    from torch.nn.attention.flex_attention import BlockMask

    # of one width whatever the density, or every density would be compiled anew
    index = F.pad(plan.kv_index, (0, plan.num_kv_blocks - plan.kv_index.shape[-1]))
    if plan.partial is None:
        none, _ = masked_lists(plan)
        # none of the first list is counted, but it is read with the strides of the full list
        masked, full, mask_mod = (none, index), (plan.kv_count, index), None
    else:
        whole = plan.kv_count - plan.partial.count
        at = torch.arange(index.shape[-1], device=index.device)
        later = (whole[..., None] + at).clamp(max=index.shape[-1] - 1).long()
        masked = plan.partial.count, index.gather(-1, later)
        full, mask_mod = (whole, index), _mask_of(plan)
    return BlockMask.from_kv_blocks(
        *masked,
        *full,
        BLOCK_SIZE=(plan.q_block, plan.kv_block),
        mask_mod=mask_mod,
        seq_lengths=(plan.q_len, plan.kv_len),
        compute_q_blocks=False,
    )


def _mask_of(plan: BlockPlan) -> Any:
    """Whether a pair of a listed block is computed, as FlexAttention asks."""
    assert plan.partial is not None
    patterns, bits = plan.pattern_of_blocks(), plan.partial.bits
    batch, heads = patterns.shape[:2]
    q_block, kv_block = plan.q_block, plan.kv_block

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        b, h = (x if many > 1 else x * 0 for x, many in ((b, batch), (h, heads)))
        pattern, column = patterns[b, h, q // q_block, k // kv_block], k % kv_block
        return (bits[pattern, q % q_block, column // WORD] >> (column % WORD)) & 1 == 1

    return seen


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # fullgraph: one shape too many is then an error; else torch would run dense, on a map of scores
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
