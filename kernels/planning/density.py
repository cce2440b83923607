"""Density of lists of equal blocks, without waiting for the device."""

from __future__ import annotations

from torch import Tensor

from vidsparse.kernels.dispatch import use_triton


def density_of_lists(
    count: Tensor,
    index: Tensor,
    q_sizes: Tensor,
    *,
    kv_block: int,
    q_len: int,
    kv_len: int,
    stand_ins: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Computed pairs over all pairs, by the lengths of the lists; the last key block may be short.

    Args:
        count: How many blocks each query block keeps, int32 ``(B|1, H|1, M)``.
        index: Which, in order, int32 ``(B|1, H|1, M, K)``.
        q_sizes: Tokens in each query block, float32 ``(M,)``.
        kv_block: Keys in a block.
        q_len: Queries of all blocks.
        kv_len: Keys of all blocks.
        stand_ins: Whether each block that is skipped counts as one key.
        impl: "triton", "reference", or "auto": Triton on CUDA.

    Returns:
        Float32 ``(B|1, H|1)``.
    """
    number = -(-kv_len // kv_block)
    if use_triton(impl, count):
        from vidsparse.kernels.triton.density import launch

        return launch(count, index, q_sizes, kv_block, q_len, kv_len, stand_ins)
    batch, heads = map(max, count.shape[:2], index.shape[:2])
    count, index = count.expand(batch, heads, -1), index.expand(batch, heads, -1, -1)
    keys = count * kv_block
    missing = number * kv_block - kv_len
    if missing:
        at = (count.long() - 1).clamp(min=0)[..., None]
        ends_short = index.gather(-1, at)[..., 0] == number - 1
        keys = keys.add(ends_short, alpha=-missing).clamp(min=0)  # an empty list has no end
    if stand_ins:
        keys = keys + (number - count)
    return (keys * q_sizes).sum(dim=-1) / (q_len * kv_len)
