"""What goes wrong where a block of keys attends through its mean (SVG-EAR's routing error).

With means q_i of query blocks, k_j and v_j of key blocks, and Z_i the sum of exp(scale * q_i . k)
over all keys,

    E(i, j)^2 = sum over k in j of |exp(scale * q_i . k_j) v_j - exp(scale * q_i . k) v_k|^2 / Z_i^2

is the error that the stand-in for block j leaves in the output of a query at q_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import block_of_token

HIGHEST = 40.0  # score of a key above the best mean of its row; beyond, it counts as that


def stand_in_error(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    key_means: Tensor,
    value_means: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    impl: str = "auto",
) -> Tensor:
    """The error of each stand-in; the scores of means against all keys are never written on a GPU.

    Args:
        query: Mean query of each block, float32 ``(batch, heads, M, head_dim)``.
        k: ``(batch, heads, seq, head_dim)``, any strides.
        v: ``(batch, heads, seq, head_dim)``.
        key_means: Mean key of each block, float32 ``(batch, heads, N, head_dim)``.
        value_means: Mean value of each block, the same.
        offsets: Where key blocks start, int32 ``(B|1, H|1, N + 1)``, from 0 to ``seq``.
        scale: Score scale.
        impl: "triton", "reference" (plain torch), or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, M, N)``; an empty block errs by nothing.

    Raises:
        BadInputError: For another ``impl``.
    """
    query, key_means, value_means = query.float(), key_means.float(), value_means.float()
    mean_scores = query @ key_means.mT * scale
    offsets = offsets.expand(*k.shape[:2], -1)
    empty = (offsets.diff(dim=-1) == 0).unsqueeze(-2)
    top = mean_scores.masked_fill(empty, float("-inf")).amax(dim=-1, keepdim=True)
    if use_triton(impl, k):
        from vidsparse.kernels.triton.stand_in_error import launch

        squares, mass = launch(query, k, v, mean_scores, top, value_means, offsets, scale, HIGHEST)
    else:
        squares, mass = _squares_and_mass(
            query, k, v, (mean_scores - top).clamp(max=0), top, value_means, offsets, scale
        )
    error = squares.clamp(min=0).sqrt() / mass.sum(dim=-1, keepdim=True)
    return error.masked_fill(empty, 0.0)


def _squares_and_mass(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    mean_scores: Tensor,
    top: Tensor,
    value_means: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Squared error and mass of each block, relative to the top of each row, ``(B, H, M, N)``."""
    key, value = k.float(), v.float()
    block = block_of_token(k.shape[2], 1, offsets)
    norm = value.square().sum(dim=-1)
    along = (value * value_means.gather(2, block[..., None].expand(value.shape))).sum(dim=-1)
    weight = (query @ key.mT * scale - top).clamp(max=HIGHEST).exp()
    block = block.unsqueeze(2).expand(weight.shape)
    mean_weight = mean_scores.exp()
    own = weight * norm.unsqueeze(2) - 2 * mean_weight.gather(3, block) * along.unsqueeze(2)
    squares = torch.zeros_like(mean_weight).scatter_add_(3, block, weight * own)
    mass = torch.zeros_like(mean_weight).scatter_add_(3, block, weight)
    rest = value_means.square().sum(dim=-1) * offsets.diff(dim=-1)
    return squares + mean_weight.square() * rest.unsqueeze(2), mass
