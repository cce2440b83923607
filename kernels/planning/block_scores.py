"""How much each block of keys matters to each block of queries, from means of their parts.

Mass (the SubBlock estimator): with q_a the mean of part a of query block i, which holds a share
w_a of its tokens, and k_b, n_b the mean and the tokens of part b of key block j,

    L(i, j) = ln sum_a w_a sum_b n_b exp(scale * q_a . k_b)

estimates the log of the un-normalised attention mass that a query of block i gives to block j. One
part each is the draft's pooled attention with sizes. Means of parts keep what a block mean averages
away.

Value error (value-aware): with P = softmax over j of L and o_i = sum_j P(i, j) v_j the estimated
output from block mean values v_j, skipping block j alone would cost P(i, j) |v_j - o_i|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.dispatch import use_triton

Biases = tuple[Tensor, Tensor]


def block_mass(
    query: Tensor,
    key: Tensor,
    query_sizes: Tensor,
    key_sizes: Tensor,
    *,
    scale: float,
    biases: Biases | None = None,
    impl: str = "auto",
) -> Tensor:
    """Estimated log-mass of each pair of blocks; no map of parts is ever written.

    Args:
        query: Means of parts, ``(batch, heads, M, a, head_dim)``, as ``pool_blocks`` gives them.
        key: ``(batch, heads, N, b, head_dim)``; a and b must be powers of two.
        query_sizes: Tokens in each part, ``(M, a)``, as ``part_sizes`` gives them.
        key_sizes: ``(N, b)``.
        scale: Score scale.
        biases: ``part_biases`` of the sizes, where somebody keeps them.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, M, N)``.
    """
    _check(query, key)
    biases = part_biases(query_sizes, key_sizes) if biases is None else biases
    if use_triton(impl, query):
        from vidsparse.kernels.triton.block_scores import mass

        return mass(query, key, *biases, scale)
    scores = query.float().flatten(2, 3) @ key.float().flatten(2, 3).mT * scale
    scores = scores.unflatten(3, key.shape[2:4]).unflatten(2, query.shape[2:4])
    scores = scores + biases[0][:, :, None, None] + biases[1]  # (B, H, M, a, N, b)
    return scores.transpose(3, 4).flatten(4).logsumexp(dim=-1)


def part_biases(query_sizes: Tensor, key_sizes: Tensor) -> Biases:
    """What sizes of parts add to scores: ``ln w_a``, ``(M, a)``, and ``ln n_b``, ``(N, b)``.

    Args:
        query_sizes: As in ``block_mass``.
        key_sizes: Likewise.
    """
    weights = query_sizes / query_sizes.sum(dim=-1, keepdim=True)
    return weights.log(), key_sizes.log()


def block_value_error(mass: Tensor, value: Tensor, *, impl: str = "auto") -> Tensor:
    """What skipping each block alone would cost, from its mass and its mean value.

    Args:
        mass: Log-mass, float32 ``(batch, heads, M, N)``.
        value: Mean value of each key block, ``(batch, heads, N, head_dim)``.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        ``P(i, j) |v_j - o_i|``, float32 ``(batch, heads, M, N)``.
    """
    if use_triton(impl, mass):
        from vidsparse.kernels.triton.block_scores import value_error

        return value_error(mass, value)
    value = value.float()
    value = value - value.mean(dim=2, keepdim=True)  # distances stay, cancellation goes
    share = mass.softmax(dim=-1).nan_to_num(0.0)  # a row without any mass costs nothing
    return share * torch.cdist(share @ value, value)


def _check(query: Tensor, key: Tensor) -> None:
    for name, parts in (("query", query.shape[3]), ("key", key.shape[3])):
        if parts & (parts - 1) or parts > 16:
            raise BadInputError(f"{name} parts must be 1, 2, 4, 8 or 16, got {parts}")
