"""Under autocast q, k and v are cast as torch's own attention casts them; what follows is explicit.

Planning and kernels choose their dtypes themselves, such as float32 sums over bf16 tokens. Autocast
would choose again at every product, so it is off inside them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def cast_as_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cast as autocast casts for ``F.scaled_dot_product_attention``: all to its dtype, but float64.

    Args:
        q: Any shape, on the device whose autocast is asked.
        k: Any shape.
        v: Any shape.
    """
    device = q.device.type
    if not torch.is_autocast_enabled(device):
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    query, key, value = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    return query, key, value


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast is off on the device of ``x``; where it is off already, this costs nothing."""
    if not torch.is_autocast_enabled(x.device.type):
        return _AS_IT_IS
    return torch.autocast(x.device.type, enabled=False)
