"""What an engine has to run, in facts that need no wait for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of attention call.

    Attributes:
        device_type: "cpu", "cuda", ...
        arch: Compute capability of a CUDA device.
        dtype: Of q, k and v.
        head_dim: Their last dimension.
        heads: Number of heads.
        q_len: Query tokens.
        kv_len: Key tokens.
        q_block: Tokens in a query block.
        kv_block: Tokens in a key block.
        offsets: Whether blocks are of unequal size.
        pooled: Whether skipped blocks take part through their means.
        partial: Whether some blocks are computed in part.
        return_lse: Whether the log-sum-exp is wanted.
        needs_grad: Whether gradients will be asked for.
        observe: Whether a report on each block is wanted.
    """

    device_type: str
    arch: tuple[int, int] | None = None
    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 128
    heads: int = 1
    q_len: int = 65_536
    kv_len: int = 65_536
    q_block: int = 128
    kv_block: int = 128
    offsets: bool = False
    pooled: bool = False
    partial: bool = False
    return_lse: bool = False
    needs_grad: bool = False
    observe: bool = False

    @classmethod
    def of_dense(cls, q: Tensor) -> Case:
        """The case of attention to all keys, of q ``(batch, heads, seq, head_dim)``."""
        return cls(**_of_queries(q), kv_len=q.shape[2])

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,
        return_lse: bool,
        observe: bool = False,
    ) -> Case:
        """The case of a call."""
        tensors = [q, k, v]
        if plan.pooled is not None:
            tensors += [plan.pooled.key, plan.pooled.value]
        return cls(
            **_of_queries(q),
            kv_len=k.shape[2],
            q_block=plan.q_block,
            kv_block=plan.kv_block,
            offsets=plan.q_offsets is not None or plan.kv_offsets is not None,
            pooled=plan.pooled is not None,
            partial=plan.partial is not None,
            return_lse=return_lse,
            needs_grad=torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
            observe=observe,
        )


def _of_queries(q: Tensor) -> dict[str, Any]:
    """The facts that queries ``(batch, heads, seq, head_dim)`` tell."""
    return {
        "device_type": q.device.type,
        "arch": torch.cuda.get_device_capability(q.device) if q.is_cuda else None,
        "dtype": q.dtype,
        "head_dim": q.shape[3],
        "heads": q.shape[1],
        "q_len": q.shape[2],
    }
