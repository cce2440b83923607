"""Dense attention by an engine that is named, or by the fastest on a kind of GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flash import flash_dense
from vidsparse.kernels.engines.int8 import everything
from vidsparse.kernels.engines.table import ENGINES, Choice, measured_dense

MODEL = "model"  # what the model calls by itself
FLASH = "flash"  # flash-attn-4's own dense kernel
TORCH = {  # of PyTorch itself, those that hold no score matrix
    "torch-flash": SDPBackend.FLASH_ATTENTION,
    "torch-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch-cudnn": SDPBackend.CUDNN_ATTENTION,
}


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
        engine: "flash" for flash-attn-4's own dense kernel, a name in ``TORCH``, or an engine of
            block plans.
        q: ``(batch, heads, seq, head_dim)``.
        k: ``(batch, heads, seq, head_dim)``.
        v: ``(batch, heads, seq, head_dim)``.
        scale: Score scale.

    Returns:
        ``(batch, heads, seq, head_dim)``.

    Raises:
        BadInputError: When the engine cannot run this.
    """
    if engine == FLASH:
        return flash_dense(q, k, v, scale=scale)[0]
    if engine in TORCH:
        return _by_torch(engine, q, k, v, scale)
    return attention(q, k, v, everything(q, k), scale=scale, engine=engine)


def _by_torch(engine: str, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(TORCH[engine]):
        try:
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BadInputError(f"dense engine {engine!r} cannot run this: {error}") from error
