"""Mean attention of blocks of query rows to blocks of keys, from exact scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton

AT_ONCE = 1 << 26  # scores that the plain version holds at a time: 256 MiB


def exact_mass(
    q: Tensor,
    k: Tensor,
    *,
    q_block: int,
    kv_block: int,
    scale: float,
    lse: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Average softmax over blocks; without values.

    No map of scores is ever written: a row leaves one number for each block of keys.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides; the rows of a block lie together.
        k: ``(batch, heads, kv_len, head_dim)``.
        q_block: Rows in a block, on a GPU at most 256; the last may have fewer.
        kv_block: Keys in a block, on a GPU at most 256.
        scale: Score scale.
        lse: Log-sum-exp by which each row is divided, ``(batch, heads, q_len)``; its own when None.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, M, N)``, whose rows sum to one under their own log-sum-exp, and
        that log-sum-exp, or the one that is given.

    Raises:
        BadInputError: For another ``impl``, or larger blocks on a GPU.
    """
    if use_triton(impl, q):
        from vidsparse.kernels.triton.exact_mass import launch

        return launch(q, k, q_block=q_block, kv_block=kv_block, scale=scale, lse=lse)
    key, found, sums = k.float().mT, [], []
    per_block = q.shape[0] * q.shape[1] * k.shape[2] * q_block
    at_once = q_block * max(1, AT_ONCE // per_block)
    for start in range(0, q.shape[2], at_once):
        rows = slice(start, start + at_once)
        scores = q[:, :, rows].float() @ key * scale
        own = scores.logsumexp(dim=-1) if lse is None else lse[:, :, rows]
        share = F.pad((scores - own[..., None]).exp_(), (0, -k.shape[2] % kv_block))
        found.append(_mean_rows(share.unflatten(-1, (-1, kv_block)).sum(dim=-1), q_block))
        sums.append(own)
    return torch.cat(found, dim=2), torch.cat(sums, dim=2)


def _mean_rows(x: Tensor, block: int) -> Tensor:
    """Mean over each ``block`` rows of ``(batch, heads, rows, N)``, and over those left."""
    whole = x.shape[2] // block * block
    blocks = [x[:, :, :whole].unflatten(2, (-1, block)).mean(dim=3)]
    if whole < x.shape[2]:
        blocks.append(x[:, :, whole:].mean(dim=2, keepdim=True))
    return torch.cat(blocks, dim=2)
