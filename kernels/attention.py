"""One door to every engine: ``attention(q, k, v, plan)``."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.cpu import cpu_attention
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.reference import reference_attention

ENGINES: dict[str, Callable[..., Tensor]] = {
    "cpu": cpu_attention,
    "reference": reference_attention,
}


class Choice(NamedTuple):
    """An engine and the reason it was taken."""

    engine: str
    why: str


def choose_engine(device_type: str) -> Choice:
    """Name the engine that ``engine="auto"`` takes for tensors on a device, and say why."""
    if device_type == "cpu":
        return Choice("cpu", "grouped gather, the fastest engine on a CPU")
    return Choice("cpu", f"grouped gather runs on {device_type} too; it is not tuned for it")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    engine: str = "auto",
) -> Tensor:
    """Attend as ``plan`` says.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute.
        scale: Score scale, ``head_dim ** -0.5`` when None.
        engine: "auto", or a name in ``ENGINES``.

    Returns:
        ``(batch, heads, q_len, head_dim)`` in q's dtype.

    Raises:
        BadInputError: For an unknown engine, or a plan made for other lengths.
    """
    check_engine(engine)
    lengths = (q.shape[2], k.shape[2], v.shape[2])
    if lengths != (plan.q_len, plan.kv_len, plan.kv_len):
        raise BadInputError(
            f"the plan is for {plan.q_len} queries and {plan.kv_len} keys and values, got "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}: make a plan for these tensors"
        )
    name = choose_engine(q.device.type).engine if engine == "auto" else engine
    return ENGINES[name](q, k, v, plan, scale=scale)


def check_engine(engine: str) -> None:
    """Raise BadInputError, naming the engines there are, for an unknown one."""
    if engine != "auto" and engine not in ENGINES:
        raise BadInputError(f"unknown engine {engine!r}: choose auto, {', '.join(sorted(ENGINES))}")
