"""Antidiagonal scores (XAttention, arXiv 2503.16428): a strided sample of every block.

Queries and keys are taken in groups of ``stride`` tokens, u and v; of the stride x stride products
between two groups only the antidiagonal is computed, which touches every token once:

    A(u, v) = scale / stride * sum_r q[u * stride + r] . k[v * stride + stride - 1 - r]

P = softmax over v of A, and the score of a pair of blocks is the attention that the groups of the
query block give to the groups of the key block, averaged over the query groups. Rows sum to one.
Products with a token past the end count as zero. This costs 1 / stride of q . k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton


def antidiagonal_scores(
    q: Tensor, k: Tensor, *, block: int, stride: int = 8, scale: float, impl: str = "auto"
) -> Tensor:
    """Score every pair of blocks; the map of groups is never written, on a GPU.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        block: Tokens in a block.
        stride: Tokens in a group; divides the block.
        scale: Score scale.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Attention of query blocks to key blocks, float32 ``(batch, heads, M, N)``.

    Raises:
        BadInputError: For another ``impl``, or a stride that does not divide the block.
    """
    if stride < 1 or block % stride:
        raise BadInputError(f"stride must divide the block of {block} tokens, got {stride}")
    if use_triton(impl, q):
        from vidsparse.kernels.triton.antidiagonal import launch

        return launch(q, k, block, stride, scale)
    query = _groups(q, stride).flatten(3)
    key = _groups(k, stride).flip(3).flatten(3)
    share = (query @ key.mT * (scale / stride)).softmax(dim=-1)
    per_block = block // stride
    share = F.pad(share, (0, -share.shape[3] % per_block)).unflatten(3, (-1, per_block)).sum(-1)
    groups = torch.arange(share.shape[2], device=q.device) // per_block
    blocks = -(-share.shape[2] // per_block)
    total = share.new_zeros(*share.shape[:2], blocks, share.shape[3])
    total.index_add_(2, groups, share)
    return total / groups.bincount(minlength=blocks)[:, None]


def _groups(x: Tensor, stride: int) -> Tensor:
    """``(batch, heads, groups, stride, head_dim)`` in float32, zero past the end."""
    x = F.pad(x.float(), (0, 0, 0, -x.shape[2] % stride))
    return x.unflatten(2, (-1, stride))
