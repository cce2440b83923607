"""Block scores from strided antidiagonals: XAttention (2503.16428).

Tokens are regrouped by stride s. The reduced map has a row for every s queries and a column for
every s keys, and sums the antidiagonal of that s x s tile:

    t(u, w) = scale / s * sum over r < s of q[s u + s - 1 - r] . k[s w + r]

Every token takes part once in each row and column, and every diagonal and vertical of the map is
crossed. With p = softmax over w of t, the score of blocks (i, j) is the share of attention that
the rows u in i give to the columns w in j, on average:

    score(i, j) = mean over u in i of sum over w in j of p(u, w)

so that scores are probabilities over j, as ``select_top_p`` wants them. Tokens after the end are
zero vectors, as in XAttention; rows and columns with no token at all do not exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.errors import BadInputError


def antidiagonal_scores(
    q: Tensor, k: Tensor, *, block: int, stride: int = 8, scale: float, impl: str = "auto"
) -> Tensor:
    """Share of attention between blocks, from antidiagonals; costs about 1 / (2 stride) of dense.

    The Triton kernels never write the reduced map: only the log-sum of each of its rows over each
    key block, for a few heads at a time.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        block: Tokens in a block of queries and of keys.
        stride: s, which divides the block; block / stride must be a power of two, at most 128.
        scale: Score scale.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, M, N)``, rows sum to one.

    Raises:
        BadInputError: For another ``impl``, or a stride that does not fit the block.
    """
    if impl not in ("auto", "triton", "reference"):
        raise BadInputError(f"unknown impl {impl!r}: choose auto, triton or reference")
    width = block // max(stride, 1)
    if stride < 1 or block % stride or width & (width - 1) or width > 128:
        raise BadInputError(
            f"block / stride must be a power of two up to 128, got {block} / {stride}"
        )
    if impl == "triton" or (impl == "auto" and q.is_cuda and q.dtype != torch.float64):
        from vidsparse.kernels.triton.antidiagonal import launch

        return launch(q, k, block, stride, scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = _regroup(q.to(wide), stride).flip(3).flatten(3)  # (B, H, U, s * head_dim)
    columns = _regroup(k.to(wide), stride).flatten(3)
    p = (rows @ columns.mT * (scale / stride)).softmax(dim=-1)
    p = F.pad(p, (0, -p.shape[3] % width)).unflatten(3, (-1, width)).sum(dim=4)
    return torch.stack([part.mean(dim=2) for part in p.split(width, dim=2)], dim=2).float()


def _regroup(x: Tensor, stride: int) -> Tensor:
    """Every ``stride`` tokens as one row, zeros after the end: (B, H, rows, stride, head_dim)."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % stride)).unflatten(2, (-1, stride))
