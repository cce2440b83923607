"""Token orders for engines that read tokens where they lie: permute, attend, permute back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.permute import in_token_order, unpermute_tokens

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def attend_in_order(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    key_length: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend with copies of q, k and v that stand in the plan's orders.

    Arguments and result as in ``reference_attention``; ``attend`` is called with a plan that has
    no orders.
    """
    q_order, kv_order = plan.q_order, plan.kv_order
    ordered = dataclasses.replace(plan, q_order=None, kv_order=None)
    query = in_token_order(q, q_order)
    key, value = (in_token_order(x, kv_order) for x in (k, v))
    out, lse = attend(
        query, key, value, ordered, scale=scale, key_length=key_length, return_lse=return_lse
    )
    if q_order is not None:
        out = unpermute_tokens(out, q_order, like=q)
        lse = None if lse is None else unpermute_tokens(lse[..., None], q_order)[..., 0]
    return out, lse
