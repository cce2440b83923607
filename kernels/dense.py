"""Dense attention by the engine that was fastest on a kind of GPU."""

from __future__ import annotations

from torch import Tensor

from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flash import flash_dense
from vidsparse.kernels.engines.int8 import everything
from vidsparse.kernels.engines.table import ENGINES, Choice, measured_dense

MODEL = "model"  # what the model calls by itself


def fastest_dense(case: Case) -> Choice:
    """Name the fastest dense engine that can run a case: "flash", "triton", or "model".

    ``kernels/measured.json`` holds how fast they are; of a GPU that is not in it nothing is known,
    and the model's own attention stays.
    """
    speeds = measured_dense(case)
    if not speeds:
        return Choice(MODEL, "no dense engine was measured on this kind of device")
    able = [name for name in speeds if name == MODEL or not ENGINES[name].why_not(case)]
    best = max(able, key=lambda name: speeds[name])
    others = ", ".join(
        f"{name} {speeds[name]:.0f}" for name in sorted(able, key=lambda n: speeds[n])
    )
    return Choice(best, f"fastest of those that run here, mean TFLOP/s: {others}")


def dense_attention(engine: str, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attend to all keys.

    Args:
        engine: "flash" for flash-attn-4's own dense kernel, or an engine of block plans.
        q: ``(batch, heads, seq, head_dim)``.
        k: ``(batch, heads, seq, head_dim)``.
        v: ``(batch, heads, seq, head_dim)``.
        scale: Score scale.

    Returns:
        ``(batch, heads, seq, head_dim)``.

    Raises:
        BadInputError: When the engine cannot run this.
    """
    if engine == "flash":
        return flash_dense(q, k, v, scale=scale)[0]
    return attention(q, k, v, everything(q, k), scale=scale, engine=engine)
