"""Attention under a block plan by a loop in C++, compiled on this machine: made for CPUs.

The gathering engine ``cpu`` calls torch for many small batches, and at the end of each every thread
waits for the slowest; while other programs run, that takes longer than the work. Here a call is one
parallel loop whose threads take query blocks one by one, and nothing is gathered.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.observe import NOTHING, Observed
from vidsparse.kernels.native import build
from vidsparse.kernels.plan import BlockPlan

WIDE = 16  # values are read that many numbers at a time


def native_unsupported(case: Case) -> list[str]:
    """Why the ``native`` engine cannot run a case; empty when it can.

    The first call compiles it, in about a second.
    """
    reasons = []
    if case.device_type != "cpu":
        reasons.append(f"it runs on CPUs, not on {case.device_type}")
    elif problem := build.why_not():
        reasons.append(problem)
    if case.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"it computes in float32, which is too coarse for {case.dtype}")
    return reasons


def native_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says; arguments and result as in ``reference_attention``.

    Computes in float32. Only of cases of which ``native_unsupported`` has nothing to say.
    """
    lse = torch.empty(q.shape[:3]) if return_lse else None
    return _run(q, k, v, plan, scale, lse=lse).to(q.dtype), lse


def observe_native(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float) -> Observed:
    """Attend and report; arguments and result as in ``observe_reference``."""
    lists = *q.shape[:2], *plan.kv_index.shape[2:]
    lse = torch.empty(q.shape[:3])
    margin = torch.full(lists, NOTHING)
    out = _run(q, k, v, plan, scale, lse=lse, margin=margin)
    return Observed(out.to(q.dtype), lse, margin)


class _Rows(ctypes.Structure):
    """A tensor ``(batch, heads, rows, head_dim)`` and its strides."""

    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "head", "row")]

    @classmethod
    def of(cls, x: Tensor) -> _Rows:
        return cls(x.data_ptr(), *x.stride()[:3])


class _Lists(ctypes.Structure):
    """Integers ``(B|1, H|1, ...)`` and their strides, 0 where all share them."""

    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "head")]

    @classmethod
    def of(cls, x: Tensor) -> _Lists:
        return cls(x.data_ptr(), *(x.stride(i) if x.shape[i] > 1 else 0 for i in (0, 1)))


class _Job(ctypes.Structure):
    """As in ``attend.cpp``."""

    _fields_ = [
        *((name, _Rows) for name in ("q", "k", "v", "mean_k", "mean_v", "out")),
        *((name, _Lists) for name in ("count", "index", "q_edges", "kv_edges", "pattern")),
        ("bits", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("log_size", "lse", "margin")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "q_len", "q_blocks", "kv_blocks")),
        *((name, ctypes.c_int64) for name in ("listed", "depth", "width", "q_block", "words")),
        ("scale", ctypes.c_float),
    ]


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    scale: float,
    *,
    lse: Tensor | None,
    margin: Tensor | None = None,
) -> Tensor:
    """Fill the reports that are given, float32 and contiguous, and return the output in float32."""
    batch, heads, q_len, depth = q.shape
    width = -(-depth // WIDE) * WIDE
    out = torch.empty_like(q, dtype=torch.float32)
    out = out if out.stride(3) == 1 else torch.empty(q.shape)
    tensors = {"q": _floats(q), "k": _floats(k), "v": _floats(v, width), "out": out}
    lists = {"count": plan.kv_count.contiguous(), "index": plan.kv_index.contiguous()}
    lists["q_edges"] = _edges(plan.q_offsets, q_len, plan.q_block)
    lists["kv_edges"] = _edges(plan.kv_offsets, plan.kv_len, plan.kv_block)
    others: dict[str, Tensor | None] = {"lse": lse, "margin": margin}
    if plan.pooled is not None:
        tensors["mean_k"] = _floats(plan.pooled.key)
        tensors["mean_v"] = _floats(plan.pooled.value, width)
        sizes = plan.pooled.size.float().log()
        others["log_size"] = sizes.expand(batch, heads, -1).contiguous()
    words = 0
    if plan.partial is not None:
        _, lists["pattern"], bits = plan.partial.contiguous()
        others["bits"], words = bits, bits.shape[-1]
    job = _Job(
        **{name: _Rows.of(x) for name, x in tensors.items()},
        **{name: _Lists.of(x) for name, x in lists.items()},
        **{name: None if x is None else x.data_ptr() for name, x in others.items()},
        batch=batch, heads=heads, q_len=q_len, depth=depth, width=width, scale=scale,
        q_blocks=plan.num_q_blocks, kv_blocks=plan.num_kv_blocks, listed=plan.kv_index.shape[-1],
        q_block=plan.q_block, words=words,
    )  # fmt: skip
    build.load().vidsparse_attend(ctypes.byref(job), torch.get_num_threads())
    return out


def _floats(x: Tensor, width: int = 0) -> Tensor:
    """As float32, each row in one piece and at least that wide."""
    x = x.float()
    x = F.pad(x, (0, width - x.shape[3])) if x.shape[3] < width else x
    return x if x.stride(3) == 1 else x.contiguous()


def _edges(offsets: Tensor | None, length: int, block: int) -> Tensor:
    """Where blocks start, and where the last one ends, int32 ``(B|1, H|1, blocks + 1)``."""
    if offsets is not None:
        return offsets.contiguous()
    number = -(-length // block)
    return (torch.arange(number + 1, dtype=torch.int32) * block).clamp(max=length)[None, None]
