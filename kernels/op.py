"""``vidsparse::attend``, the custom op around every engine: what torch.compile and autograd see.

One op with the engine's name as an argument, so that there is one fake implementation and one
backward. A plan travels as its tensors, since an op takes nothing else.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.autocast import without_autocast
from vidsparse.kernels.backward import attention_backward, pooled_backward
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.stand_ins import add_skipped
from vidsparse.kernels.engines.table import ENGINES, resolve_engine
from vidsparse.kernels.plan import BlockPlan, Partial, Pooled


def tensors_of(plan: BlockPlan) -> tuple[Tensor | None, ...]:
    """The plan as the op takes it, before the sizes of its blocks."""
    pooled = plan.pooled
    means = (None,) * 3 if pooled is None else (pooled.key, pooled.value, pooled.size)
    partial = plan.partial
    masks = (None,) * 3 if partial is None else (partial.count, partial.pattern, partial.bits)
    return plan.kv_count, plan.kv_index, plan.q_offsets, plan.kv_offsets, *means, *masks


@torch.library.custom_op("vidsparse::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_count: Tensor,
    kv_index: Tensor,
    q_offsets: Tensor | None,
    kv_offsets: Tensor | None,
    pooled_key: Tensor | None,
    pooled_value: Tensor | None,
    pooled_size: Tensor | None,
    partial_count: Tensor | None,
    partial_pattern: Tensor | None,
    partial_bits: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    need_lse: bool,
    engine: str,
    resolved: bool,
) -> tuple[Tensor, Tensor]:
    """Run an engine, then add what it skipped; the log-sum-exp is empty unless it is needed.

    With ``resolved`` the engine is known to run this; else it is found out here, so that
    torch.compile need not trace the choice.
    """
    plan = BlockPlan(
        kv_count=kv_count, kv_index=kv_index, q_len=q.shape[2], kv_len=k.shape[2],
        q_block=q_block, kv_block=kv_block, q_offsets=q_offsets, kv_offsets=kv_offsets,
        pooled=_pooled(pooled_key, pooled_value, pooled_size),
        partial=_partial(partial_count, partial_pattern, partial_bits),
    )  # fmt: skip
    if not resolved:
        engine = resolve_engine(engine, Case.of(q, k, v, plan, need_lse))
    chosen = ENGINES[engine]
    apart = plan.pooled is not None and not chosen.takes_pooled
    exact = dataclasses.replace(plan, pooled=None) if apart else plan
    with without_autocast(q):
        out, lse = chosen.run(q, k, v, exact, scale=scale, return_lse=need_lse or apart)
        if apart:
            assert lse is not None
            out, lse = add_skipped(q, out, lse, plan, scale=scale)
    lse = lse.float().contiguous() if need_lse and lse is not None else _no_lse(q)
    return _laid_out_like(out, q), lse


@_attend.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_lse = rest[-3]
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    return torch.empty_like(q), lse


def _no_lse(q: Tensor) -> Tensor:
    return q.new_empty(0, dtype=torch.float32)


def _pooled(key: Tensor | None, value: Tensor | None, size: Tensor | None) -> Pooled | None:
    if key is None or value is None or size is None:
        return None
    return Pooled(key=key, value=value, size=size)


def _partial(count: Tensor | None, pattern: Tensor | None, bits: Tensor | None) -> Partial | None:
    if count is None or pattern is None or bits is None:
        return None
    return Partial(count=count, pattern=pattern, bits=bits)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.q_block, ctx.kv_block, ctx.scale, _need_lse, _engine, _resolved = inputs
    out, lse = output
    ctx.present = [x is not None for x in tensors]
    ctx.save_for_backward(out, lse, *(x for x in tensors if x is not None))


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    out, lse, *saved = ctx.saved_tensors
    left = iter(saved)
    tensors = [next(left) if present else None for present in ctx.present]
    dq, dk, dv, dkey, dvalue = torch.ops.vidsparse.attend_backward(
        grad_out, grad_lse, out, lse, *tensors, ctx.q_block, ctx.kv_block, ctx.scale
    )
    pooled_size = tensors[9]
    means = (None, None) if pooled_size is None else (dkey, dvalue)
    lists, others = (None,) * 4, (None,) * 10
    return dq, dk, dv, *lists, *means, *others


@torch.library.custom_op("vidsparse::attend_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_count: Tensor,
    kv_index: Tensor,
    q_offsets: Tensor | None,
    kv_offsets: Tensor | None,
    pooled_key: Tensor | None,
    pooled_value: Tensor | None,
    pooled_size: Tensor | None,
    partial_count: Tensor | None,
    partial_pattern: Tensor | None,
    partial_bits: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = BlockPlan(
        kv_count=kv_count, kv_index=kv_index, q_len=q.shape[2], kv_len=k.shape[2],
        q_block=q_block, kv_block=kv_block, q_offsets=q_offsets, kv_offsets=kv_offsets,
        pooled=_pooled(pooled_key, pooled_value, pooled_size),
        partial=_partial(partial_count, partial_pattern, partial_bits),
    )  # fmt: skip
    dkey, dvalue = q.new_empty(0), q.new_empty(0)
    with without_autocast(q):
        dq, dk, dv = attention_backward(
            grad_out, q, k, v, out, lse, plan, scale=scale, grad_lse=grad_lse
        )
        if plan.pooled is not None:
            extra, dkey, dvalue = pooled_backward(
                grad_out, q, out, lse, plan, scale=scale, grad_lse=grad_lse
            )
            dq = dq + extra.to(dq.dtype)
    return (
        _laid_out_like(dq, q),
        _laid_out_like(dk, k),
        _laid_out_like(dv, v),
        dkey if pooled_key is None else _laid_out_like(dkey, pooled_key),
        dvalue if pooled_value is None else _laid_out_like(dvalue, pooled_value),
    )


@_attend_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    means = [q.new_empty(0) if x is None else torch.empty_like(x) for x in rest[4:6]]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), *means


def _laid_out_like(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with the strides and dtype that the fake implementation promised."""
    strides = like.stride()
    if not like.is_contiguous():
        strides = torch.empty_like(like, device="meta").stride()
    if x.stride() == strides and x.dtype == like.dtype:
        return x
    return torch.empty_like(like).copy_(x)


_attend.register_autograd(_differentiate, setup_context=_remember)
