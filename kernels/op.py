"""``vidsparse::attend``, the custom op around every engine: what torch.compile and autograd see.

One op with the engine's name as an argument, so that there is one fake implementation and one
backward. A plan travels as its tensors, since an op takes nothing else.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.autocast import without_autocast
from vidsparse.kernels.backward import attention_backward, pooled_backward
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.order import attend_in_order
from vidsparse.kernels.engines.stand_ins import add_skipped
from vidsparse.kernels.engines.table import ENGINES, resolve_engine
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.permute import permute_tokens, unpermute_tokens


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    key_length: Tensor | None,
    need_lse: bool,
    engine: str,
    resolved: bool,
) -> tuple[Tensor, Tensor]:
    """Call the op; the log-sum-exp is empty unless it is needed, as a backward pass needs it.

    With ``resolved`` the engine is known to run this; else the op finds out, so that torch.compile
    need not trace the choice.
    """
    pooled = plan.pooled
    return torch.ops.vidsparse.attend(
        q, k, v, plan.kv_count, plan.kv_index,
        plan.q_order, plan.kv_order, plan.q_offsets, plan.kv_offsets,
        None if pooled is None else pooled.key,
        None if pooled is None else pooled.value,
        None if pooled is None else pooled.size,
        key_length, plan.q_block, plan.kv_block, scale, need_lse, engine, resolved,
    )  # fmt: skip


@torch.library.custom_op("vidsparse::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_count: Tensor,
    kv_index: Tensor,
    q_order: Tensor | None,
    kv_order: Tensor | None,
    q_offsets: Tensor | None,
    kv_offsets: Tensor | None,
    pooled_key: Tensor | None,
    pooled_value: Tensor | None,
    pooled_size: Tensor | None,
    key_length: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    need_lse: bool,
    engine: str,
    resolved: bool,
) -> tuple[Tensor, Tensor]:
    plan = BlockPlan(
        kv_count=kv_count, kv_index=kv_index, q_len=q.shape[2], kv_len=k.shape[2],
        q_block=q_block, kv_block=kv_block, q_order=q_order, kv_order=kv_order,
        q_offsets=q_offsets, kv_offsets=kv_offsets,
        pooled=_pooled(pooled_key, pooled_value, pooled_size),
    )  # fmt: skip
    if not resolved:
        engine = resolve_engine(engine, Case.of(q, k, v, plan, key_length, need_lse))
    with without_autocast(q):
        out, lse = _run(q, k, v, plan, scale, key_length, need_lse, engine)
    lse = q.new_empty(0, dtype=torch.float32) if lse is None else lse.float().contiguous()
    return _laid_out_like(out, q), lse


@_attend.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_lse = rest[-3]
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    return torch.empty_like(q), lse


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    scale: float,
    key_length: Tensor | None,
    need_lse: bool,
    engine: str,
) -> tuple[Tensor, Tensor | None]:
    """Run the engine in the plan's orders, then add what it skipped."""
    chosen = ENGINES[engine]
    apart = plan.pooled is not None and not chosen.takes_pooled
    exact = dataclasses.replace(plan, pooled=None) if apart else plan
    attend = chosen.run if chosen.takes_orders else functools.partial(attend_in_order, chosen.run)
    out, lse = attend(
        q, k, v, exact, scale=scale, key_length=key_length, return_lse=need_lse or apart
    )
    if apart:
        assert lse is not None
        out, lse = add_skipped(q, out, lse, plan, scale=scale)
    return out, lse if need_lse else None


def _pooled(key: Tensor | None, value: Tensor | None, size: Tensor | None) -> Pooled | None:
    if key is None or value is None or size is None:
        return None
    return Pooled(key=key, value=value, size=size)


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
    pooled = (dkey, dvalue) if tensors[9] is not None else (None, None)
    lists_and_orders = (None,) * 6
    return dq, dk, dv, *lists_and_orders, *pooled, *(None,) * 8


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
    q_order: Tensor | None,
    kv_order: Tensor | None,
    q_offsets: Tensor | None,
    kv_offsets: Tensor | None,
    pooled_key: Tensor | None,
    pooled_value: Tensor | None,
    pooled_size: Tensor | None,
    key_length: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = BlockPlan(
        kv_count=kv_count, kv_index=kv_index, q_len=q.shape[2], kv_len=k.shape[2],
        q_block=q_block, kv_block=kv_block, q_offsets=q_offsets, kv_offsets=kv_offsets,
        pooled=_pooled(pooled_key, pooled_value, pooled_size),
    )  # fmt: skip
    like_q, like_k, like_v = q, k, v
    if q_order is not None:
        q, out, grad_out = (permute_tokens(x, q_order) for x in (q, out, grad_out))
        lse, grad_lse = (permute_tokens(x[..., None], q_order)[..., 0] for x in (lse, grad_lse))
    if kv_order is not None:
        k, v = (permute_tokens(x, kv_order) for x in (k, v))
    dkey, dvalue = q.new_empty(0), q.new_empty(0)
    with without_autocast(q):
        dq, dk, dv = attention_backward(
            grad_out, q, k, v, out, lse, plan,
            scale=scale, key_length=key_length, grad_lse=grad_lse,
        )  # fmt: skip
        if plan.pooled is not None:
            extra, dkey, dvalue = pooled_backward(
                grad_out, q, out, lse, plan, scale=scale, grad_lse=grad_lse
            )
            dq = dq + extra.to(dq.dtype)
    if q_order is not None:
        dq = unpermute_tokens(dq, q_order, like=like_q)
    if kv_order is not None:
        dk = unpermute_tokens(dk, kv_order, like=like_k)
        dv = unpermute_tokens(dv, kv_order, like=like_v)
    return (
        _laid_out_like(dq, like_q),
        _laid_out_like(dk, like_k),
        _laid_out_like(dv, like_v),
        dkey if pooled_key is None else _laid_out_like(dkey, pooled_key),
        dvalue if pooled_value is None else _laid_out_like(dvalue, pooled_value),
    )


@_attend_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    means = [q.new_empty(0) if x is None else torch.empty_like(x) for x in rest[6:8]]
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), *means


def _laid_out_like(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with the strides and dtype that the fake implementation promised."""
    strides = torch.empty_like(like, device="meta").stride()
    if x.stride() == strides and x.dtype == like.dtype:
        return x
    return torch.empty_like(like).copy_(x)


_attend.register_autograd(_differentiate, setup_context=_remember)
