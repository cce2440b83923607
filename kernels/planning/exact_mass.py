"""Attention of blocks of query rows to blocks of keys, from exact scores, without values.

No map of scores is ever written on a GPU: a row leaves one number for each block of keys.
"""

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
    """Average softmax over blocks.

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
    for rows in _at_a_time(q, k.shape[2], q_block):
        scores = q[:, :, rows].float() @ key * scale
        own = scores.logsumexp(dim=-1) if lse is None else lse[:, :, rows]
        share = F.pad((scores - own[..., None]).exp_(), (0, -k.shape[2] % kv_block))
        found.append(_mean_rows(share.unflatten(-1, (-1, kv_block)).sum(dim=-1), q_block))
        sums.append(own)
    return torch.cat(found, dim=2), torch.cat(sums, dim=2)


def largest_shares(
    q: Tensor, k: Tensor, *, q_block: int, kv_block: int, scale: float, impl: str = "auto"
) -> Tensor:
    """The largest softmax of any pair of each pair of blocks, float32 ``(batch, heads, M, N)``.

    Arguments and errors are those of ``exact_mass``.
    """
    if use_triton(impl, q):
        from vidsparse.kernels.triton.exact_mass import launch

        return launch(q, k, q_block=q_block, kv_block=kv_block, scale=scale, peak=True)[0]
    key, found = k.float().mT, []
    for rows in _at_a_time(q, k.shape[2], q_block):
        share = (q[:, :, rows].float() @ key).mul_(scale).softmax(dim=-1)
        missing = -k.shape[2] % kv_block, -share.shape[2] % q_block
        if any(missing):  # else padding would copy
            share = F.pad(share, (0, missing[0], 0, missing[1]))
        share = share.unflatten(3, (-1, kv_block)).amax(dim=-1)
        found.append(share.unflatten(2, (-1, q_block)).amax(dim=3))
    return torch.cat(found, dim=2)


def listed_mass(
    q: Tensor,
    k: Tensor,
    count: Tensor,
    index: Tensor,
    *,
    q_block: int,
    kv_block: int,
    scale: float,
    impl: str = "auto",
) -> Tensor:
    """Average softmax over the key blocks of each query block's list, as if there were no others.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        count: How many key blocks each query block sees, one at least, int32 ``(B|1, H|1, M)``.
        index: Which, int32 ``(B|1, H|1, M, K)``; what is beyond the count is not read.
        q_block: Rows in a block, on a GPU at most 256; the last may have fewer.
        kv_block: Keys in a block, on a GPU at most 256.
        scale: Score scale.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Float32 ``(batch, heads, M, N)``; rows sum to one, and are zero where they have no list.

    Raises:
        BadInputError: For another ``impl``, or larger blocks on a GPU.
    """
    shape = (*q.shape[:2], index.shape[-2])
    count, index = count.expand(shape), index.expand(*shape, -1)
    if use_triton(impl, q):
        from vidsparse.kernels.triton.exact_mass import launch

        lists = count, index
        listed, _ = launch(q, k, q_block=q_block, kv_block=kv_block, scale=scale, lists=lists)
    else:
        listed = _listed(q, k, count, index, q_block, kv_block, scale)
    mass = torch.zeros(*shape, -(-k.shape[2] // kv_block), device=q.device)
    used = torch.arange(index.shape[-1], device=q.device) < count[..., None]
    return mass.scatter_add_(-1, index.where(used, 0).long(), listed.where(used, 0.0))


def _listed(
    q: Tensor, k: Tensor, count: Tensor, index: Tensor, q_block: int, kv_block: int, scale: float
) -> Tensor:
    """What each place of a list holds, ``(batch, heads, M, K)``: lists are gathered."""
    keys = F.pad(k.float(), (0, 0, 0, -k.shape[2] % kv_block)).unflatten(2, (-1, kv_block))
    there = F.pad(torch.ones_like(k[0, 0, :, 0]), (0, -k.shape[2] % kv_block)) > 0
    there = there.unflatten(0, (-1, kv_block))
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
    head = torch.arange(q.shape[1], device=q.device)[None, :, None]
    used = torch.arange(index.shape[-1], device=q.device) < count[..., None]
    found = []
    for i, rows in enumerate(q.float().split(q_block, dim=2)):
        listed = index[:, :, i].where(used[:, :, i], 0).long()
        near = keys[batch, head, listed].flatten(2, 3)  # (B, H, K * kv_block, D)
        inside = (used[:, :, i, :, None] & there[listed]).flatten(2)
        scores = (rows @ near.mT * scale).masked_fill(~inside.unsqueeze(2), -torch.inf)
        share = scores.softmax(dim=-1).unflatten(-1, (-1, kv_block)).sum(dim=-1)
        found.append(share.mean(dim=2))
    return torch.stack(found, dim=2)


def _at_a_time(q: Tensor, kv_len: int, block: int) -> list[slice]:
    """Rows whose scores the plain version holds at a time: whole blocks."""
    number = block * max(1, AT_ONCE // (q.shape[0] * q.shape[1] * kv_len * block))
    return [slice(start, start + number) for start in range(0, q.shape[2], number)]


def _mean_rows(x: Tensor, block: int) -> Tensor:
    """Mean over each ``block`` rows of ``(batch, heads, rows, N)``, and over those left."""
    whole = x.shape[2] // block * block
    blocks = [x[:, :, :whole].unflatten(2, (-1, block)).mean(dim=3)]
    if whole < x.shape[2]:
        blocks.append(x[:, :, whole:].mean(dim=2, keepdim=True))
    return torch.cat(blocks, dim=2)
