"""How much each block of keys matters to each block of queries, from means of their parts.

Mass (the SubBlock estimator): with q_a the mean of part a of query block i, which holds a share
w_a of its tokens, and k_b, n_b the mean and the tokens of part b of key block j,

    L(i, j) = ln sum_a w_a sum_b n_b exp(scale * q_a . k_b)

estimates the log of the un-normalised attention mass that a query of block i gives to block j. One
part each is the draft's pooled attention with sizes, or clusters weighted by size. Means of parts
keep what a block mean averages away.

Value error (value-aware): with P = softmax over j of L and o_i = sum_j P(i, j) v_j the estimated
output from block mean values v_j, skipping block j would cost about P(i, j) |v_j - o_i|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError


def block_mass(
    query: Tensor,
    key: Tensor,
    query_sizes: Tensor,
    key_sizes: Tensor,
    *,
    scale: float,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> Tensor:
    """Estimated log-mass of each pair of blocks; the map of their parts is never written.

    Args:
        query: Means of parts, ``(batch, heads, M, a, head_dim)``, or ``(batch, heads, M,
            head_dim)`` for one part, as ``pool_blocks`` gives them. Products are taken in their
            dtype and summed in float32, so bfloat16 means are several times faster.
        key: ``(batch, heads, N, b, head_dim)`` or ``(batch, heads, N, head_dim)``.
        query_sizes: Tokens in each part, ``(M, a)`` as ``part_sizes`` gives them, or
            broadcastable to ``(batch, heads, M, a)``. A part without tokens takes no part.
        key_sizes: The same for keys.
        scale: Score scale.
        dtype: Of the result.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``(batch, heads, M, N)``; ``-inf`` where a block has no token.
    """
    query, key = (x.unsqueeze(3) if x.ndim == 4 else x for x in (query, key))
    weights = query_sizes / query_sizes.sum(dim=-1, keepdim=True).clamp(min=1)
    weights = weights.expand(query.shape[:4])
    key_sizes = key_sizes.expand(key.shape[:4])
    if _use_triton(impl, query):
        from vidsparse.kernels.triton.block_scores import mass

        return mass(query, key, weights, key_sizes, scale, dtype)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide).flatten(2, 3) @ key.to(wide).flatten(2, 3).mT * scale
    scores = scores.unflatten(3, key.shape[2:4]).unflatten(2, query.shape[2:4])
    scores = scores + weights.log()[..., None, None] + key_sizes.log()[:, :, None, None]
    return scores.transpose(3, 4).flatten(4).logsumexp(dim=-1).to(dtype)


def block_value_error(
    mass: Tensor, value: Tensor, *, dtype: torch.dtype = torch.float32, impl: str = "auto"
) -> Tensor:
    """What skipping each block alone would cost, from its log-mass and its mean value.

    Args:
        mass: Log-mass, ``(batch, heads, M, N)``, as ``block_mass`` gives it in float32.
        value: Mean value of each key block, ``(batch, heads, N, head_dim)``.
        dtype: Of the result.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``P(i, j) |v_j - o_i|``, ``(batch, heads, M, N)``; a row without mass is zero.
    """
    if _use_triton(impl, mass):
        from vidsparse.kernels.triton.block_scores import value_error

        return value_error(mass, value, dtype)
    wide = torch.promote_types(mass.dtype, torch.float32)
    mass, value = mass.to(wide), value.to(wide)
    lse = mass.logsumexp(dim=-1, keepdim=True)
    share = (mass - lse.where(lse.isfinite(), 0)).exp()
    return (share * torch.cdist(share @ value, value)).to(dtype)


def _use_triton(impl: str, x: Tensor) -> bool:
    if impl not in ("auto", "triton", "reference"):
        raise BadInputError(f"unknown impl {impl!r}: choose auto, triton or reference")
    return impl == "triton" or (impl == "auto" and x.is_cuda and x.dtype != torch.float64)
