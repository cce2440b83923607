"""One door to every engine: ``attention(q, k, v, plan)``."""

from __future__ import annotations

from collections import Counter
from typing import Literal, overload

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.autocast import cast_as_attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.observe import Observed, check_observable
from vidsparse.kernels.engines.table import ENGINES, check_engine, resolve_engine
from vidsparse.kernels.op import tensors_of
from vidsparse.kernels.plan import WORD, BlockPlan, Partial
from vidsparse.kernels.validate import validated


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    observe: Literal[False] = False,
    engine: str = "auto",
    ran: Counter[str] | None = None,
    validate: bool = False,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
    observe: Literal[False] = False,
    engine: str = "auto",
    ran: Counter[str] | None = None,
    validate: bool = False,
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    observe: Literal[True],
    engine: str = "auto",
    ran: Counter[str] | None = None,
    validate: bool = False,
) -> Observed: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    observe: bool = False,
    engine: str = "auto",
    ran: Counter[str] | None = None,
    validate: bool = False,
) -> Tensor | tuple[Tensor, Tensor] | Observed:
    """Attend as ``plan`` says.

    A custom op, unless it observes: torch.compile sees no graph break, gradients flow to q, k, v
    and to pooled means, and under autocast q, k and v are cast as torch's own attention casts them.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute.
        scale: Score scale, positive; ``head_dim ** -0.5`` when None.
        return_lse: Also return the natural log-sum-exp of each row, float32
            ``(batch, heads, q_len)``, differentiable too.
        observe: Return what was seen of each listed block too, as ``engines.observe.Observed``:
            of equal blocks of at most 128 tokens, without pooled stand-ins. Lists may be in any
            order.
        engine: "auto", or a name in ``engines.table.ENGINES``.
        ran: Counts the engine that runs, by its name.
        validate: Check the whole plan first, which waits for the device.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype, with the strides of ``empty_like(q)``;
        with ``return_lse`` a pair, with ``observe`` an ``Observed``. A row left without any key is
        zero.

    Raises:
        BadInputError: For an unknown engine or one that cannot run this case, tensors that do not
            fit the plan or one another, or, with ``validate``, a plan that is wrong.
    """
    q, k, v = cast_as_attention(q, k, v)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    _check_tensors(q, k, v, plan, scale)
    if validate:
        _validate(plan)
    if observe:
        check_observable(plan)
    need_lse = return_lse or _trains(q, k, v, plan)
    resolved = observe or ran is not None or not torch.compiler.is_compiling()
    if resolved:
        case = Case.of(q, k, v, plan, need_lse, observe)
        engine = resolve_engine(engine, case)
    else:
        check_engine(engine)
    if ran is not None:
        ran[engine] += 1
    seen = ENGINES[engine].observe if observe else None
    if seen is not None:
        return seen(q, k, v, plan, scale=scale)
    out, lse = torch.ops.vidsparse.attend(
        q, k, v, *tensors_of(plan), plan.q_block, plan.kv_block, scale, need_lse, engine, resolved
    )
    return (out, lse) if return_lse else out


def _trains(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> bool:
    """Whether a backward pass may come, which wants the log-sum-exp."""
    inputs = (q, k, v) if plan.pooled is None else (q, k, v, plan.pooled.key, plan.pooled.value)
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float) -> None:
    """Everything that shapes and dtypes can tell, so that no kernel reads out of bounds."""
    if any(x.dim() != 4 for x in (q, k, v)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise BadInputError(f"q, k and v must be (batch, heads, seq, head_dim), got {shapes}")
    lengths = (q.shape[2], k.shape[2], v.shape[2])
    if lengths != (plan.q_len, plan.kv_len, plan.kv_len):
        raise BadInputError(
            f"the plan is for {plan.q_len} queries and {plan.kv_len} keys and values, got "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}: make a plan for these tensors"
        )
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise BadInputError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must agree in batch, "
            "heads and head_dim"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise BadInputError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not scale > 0:
        raise BadInputError(f"scale must be positive, got {scale:g}")
    _check_plan(q, plan)


def _check_plan(q: Tensor, plan: BlockPlan) -> None:
    """What can be seen of a plan without waiting for the device."""
    if plan.kv_count.dtype != torch.int32 or plan.kv_index.dtype != torch.int32:
        raise BadInputError(
            f"kv_count and kv_index must be int32, got {plan.kv_count.dtype} and "
            f"{plan.kv_index.dtype}"
        )
    for name, have, lists in zip(
        ("batch", "heads"), q.shape[:2], plan.kv_index.shape[:2], strict=True
    ):
        if lists not in (1, have):
            raise BadInputError(f"the plan is for {name} {lists}, q has {name} {have}")
    rows = plan.kv_count.shape[-1], plan.kv_index.shape[-2]
    if rows != (plan.num_q_blocks, plan.num_q_blocks):
        raise BadInputError(
            f"the plan has {plan.num_q_blocks} query blocks, its lists have {rows[0]} and {rows[1]}"
        )
    if plan.kv_count.device != q.device:
        raise BadInputError(f"the plan is on {plan.kv_count.device}, q is on {q.device}")
    if plan.partial is not None:
        _check_partial(plan, plan.partial)


def _check_partial(plan: BlockPlan, partial: Partial) -> None:
    """What can be seen of partial blocks without waiting for the device."""
    if plan.q_offsets is not None or plan.kv_offsets is not None:
        raise BadInputError("partial blocks are of equal size: leave offsets out of the plan")
    found = [tuple(x.shape) for x in (partial.count, partial.pattern, partial.bits)]
    words = -(-plan.kv_block // WORD)
    shapes = [tuple(x.shape) for x in (plan.kv_count, plan.kv_index)]
    if found != [*shapes, (found[2][0], plan.q_block, words)]:
        raise BadInputError(
            f"partial blocks of this plan need count {shapes[0]}, pattern {shapes[1]} and bits "
            f"(patterns, {plan.q_block}, {words}), got {found[0]}, {found[1]} and {found[2]}"
        )
    if any(x.dtype != torch.int32 for x in (partial.count, partial.pattern, partial.bits)):
        raise BadInputError("the count, pattern and bits of partial blocks must be int32")


def _validate(plan: BlockPlan) -> None:
    try:
        validated(plan)
    except ValueError as error:
        raise BadInputError(f"the plan is wrong: {error}") from None
