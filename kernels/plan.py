"""The block plan: which blocks of keys each block of queries attends to.

A plan is data, not code: every method ends in one, every engine starts from one.

Shapes used in this folder: ``B`` batch, ``H`` heads, ``M`` query blocks, ``N`` key blocks,
``K`` the widest list of key blocks, ``D`` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Pooled:
    """Block means that stand in for the key blocks a plan skips.

    Attributes:
        key: Mean key of each block, shape ``(batch, heads, N, head_dim)``.
        value: Mean value of each block, shape ``(batch, heads, N, head_dim)``.
        size: Tokens in each block, shape ``(N,)``; a skipped block scores
            ``q . key * scale + ln(size)``.
    """

    key: Tensor
    value: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockPlan:
    """For each (batch, head, query block), the list of key blocks that are computed.

    The lists have the layout of FlexAttention's ``BlockMask`` and of flash-attn-4's block-sparse
    tensors. A batch or head dimension of one means that all share the plan. The last block of
    queries and of keys may be short.

    Attributes:
        kv_count: How many key blocks each query block reads, int32 ``(B|1, H|1, M)``.
        kv_index: Which ones, int32 ``(B|1, H|1, M, K)``, ascending in the first ``kv_count``
            entries; the rest is not read.
        q_len: Query tokens.
        kv_len: Key tokens.
        q_block: Tokens in a query block.
        kv_block: Tokens in a key block.
        pooled: Block means through which skipped blocks take part, or None to drop them.
    """

    kv_count: Tensor
    kv_index: Tensor
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    pooled: Pooled | None = None

    @classmethod
    def from_mask(
        cls, keep: Tensor, *, q_len: int, kv_len: int, q_block: int, kv_block: int
    ) -> BlockPlan:
        """Make lists of a block mask, on its device and without a host sync.

        Args:
            keep: Boolean, ``(B|1, H|1, M, N)``, True where a block is computed.
            q_len: Query tokens.
            kv_len: Key tokens.
            q_block: Tokens in a query block.
            kv_block: Tokens in a key block.
        """
        # a stable sort of "dropped" puts the kept blocks first and keeps them ascending
        index = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)
        return cls(
            kv_count=keep.sum(dim=-1, dtype=torch.int32),
            kv_index=index.to(torch.int32),
            q_len=q_len,
            kv_len=kv_len,
            q_block=q_block,
            kv_block=kv_block,
        )

    @property
    def num_q_blocks(self) -> int:
        return -(-self.q_len // self.q_block)

    @property
    def num_kv_blocks(self) -> int:
        return -(-self.kv_len // self.kv_block)

    @property
    def density(self) -> float:
        """Computed query-key pairs over all pairs, exact with short last blocks.

        Pooled stand-ins are not counted; they add at most ``1 / kv_block``. Reads one number
        back from the device.
        """
        return float(self.head_density().mean())

    def head_density(self) -> Tensor:
        """Density of each head, float32 ``(B|1, H|1)``, without a host sync."""
        q_size = block_sizes(self.q_len, self.q_block, self.kv_count.device)
        kv_size = block_sizes(self.kv_len, self.kv_block, self.kv_count.device)
        kept_keys = (self.to_block_mask() * kv_size).sum(dim=-1)
        return ((kept_keys * q_size).sum(dim=-1) / (self.q_len * self.kv_len)).float()

    def to_block_mask(self) -> Tensor:
        """The plan as a boolean ``(B|1, H|1, M, N)``."""
        used = torch.arange(self.kv_index.shape[-1], device=self.kv_index.device)
        used = used < self.kv_count[..., None]
        counts = torch.zeros(
            *self.kv_count.shape, self.num_kv_blocks, dtype=torch.int32, device=used.device
        )
        listed = self.kv_index.where(used, 0).long()  # entries after the count may hold anything
        return counts.scatter_add_(-1, listed, used.int()) > 0

    def to_dense_mask(self) -> Tensor:
        """The plan as a boolean token mask ``(B|1, H|1, q_len, kv_len)``; large, for tests."""
        mask = self.to_block_mask()
        mask = mask.repeat_interleave(self.q_block, -2).repeat_interleave(self.kv_block, -1)
        return mask[..., : self.q_len, : self.kv_len]

    def nbytes(self) -> int:
        """Bytes held by the plan's tensors."""
        tensors = [self.kv_count, self.kv_index]
        if self.pooled is not None:
            tensors += [self.pooled.key, self.pooled.value, self.pooled.size]
        return sum(t.numel() * t.element_size() for t in tensors)

    def validate(self) -> BlockPlan:
        """Check the whole plan, reading it back from the device; for tests and for new policies.

        Raises:
            ValueError: Naming what is wrong: a dtype, a shape, an empty row, an index that no
                block has, or a block listed twice.
        """
        for name, tensor in (("kv_count", self.kv_count), ("kv_index", self.kv_index)):
            if tensor.dtype != torch.int32:
                raise ValueError(f"{name} must be int32, got {tensor.dtype}")
        expected = (*self.kv_index.shape[:2], self.num_q_blocks)
        if tuple(self.kv_count.shape) != expected or self.kv_index.shape[:3] != expected:
            raise ValueError(
                f"a plan of {self.num_q_blocks} query blocks needs kv_count (B, H, M) and kv_index "
                f"(B, H, M, K), got {tuple(self.kv_count.shape)} and {tuple(self.kv_index.shape)}"
            )
        width = self.kv_index.shape[-1]
        if bool((self.kv_count < 1).any()) or bool((self.kv_count > width).any()):
            raise ValueError(
                f"every query block must list between 1 and {width} key blocks, got counts from "
                f"{int(self.kv_count.min())} to {int(self.kv_count.max())}"
            )
        used = torch.arange(width, device=self.kv_index.device) < self.kv_count[..., None]
        listed = self.kv_index[used]
        if bool((listed < 0).any()) or bool((listed >= self.num_kv_blocks).any()):
            raise ValueError(
                f"key block indices must be in [0, {self.num_kv_blocks}), got "
                f"{int(listed.min())} to {int(listed.max())}"
            )
        if int(self.to_block_mask().sum()) != int(self.kv_count.sum()):
            raise ValueError("a query block lists the same key block twice")
        return self


def block_sizes(length: int, block: int, device: torch.device | str | None = None) -> Tensor:
    """Tokens in each block, float32 ``(ceil(length / block),)``; the last may be short.

    Example:
        >>> block_sizes(10, 4)
        tensor([4., 4., 2.])
    """
    starts = torch.arange(0, length, block, device=device)
    return (length - starts).clamp(max=block).float()


def pool_blocks(x: Tensor, block: int) -> Tensor:
    """Mean of each block of tokens; a short last block averages only its own tokens.

    Args:
        x: ``(batch, heads, seq, head_dim)``, any strides.
        block: Tokens in a block.

    Returns:
        ``(batch, heads, ceil(seq / block), head_dim)`` in float32 (float64 for float64 input).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    whole = x.shape[2] // block * block
    means = x[:, :, :whole].unflatten(2, (-1, block)).mean(dim=3, dtype=dtype)
    if whole == x.shape[2]:
        return means
    return torch.cat([means, x[:, :, whole:].mean(dim=2, keepdim=True, dtype=dtype)], dim=2)
