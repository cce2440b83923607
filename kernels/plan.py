"""The block plan: which blocks of keys each block of queries attends to.

A plan is data, not code: every method ends in one, every engine starts from one.

Shapes used in this folder: ``B`` batch, ``H`` heads, ``M`` query blocks, ``N`` key blocks,
``K`` the widest list of key blocks, ``D`` head_dim. ``B|1`` may be one: all share the plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidsparse.kernels.planning.density import density_of_lists

WORD = 32  # bits of a number that says which pairs of a partial block are computed


@dataclass(frozen=True, eq=False, kw_only=True)
class Pooled:
    """Block means that stand in for the key blocks a plan skips.

    Attributes:
        key: Mean key of each block, shape ``(batch, heads, N, head_dim)``.
        value: Mean value of each block, shape ``(batch, heads, N, head_dim)``.
        size: Tokens in each block, shape ``(N,)`` or ``(B|1, H|1, N)``; a skipped block scores
            ``q . key * scale + ln(size)``. An empty block takes no part.
    """

    key: Tensor
    value: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Partial:
    """Which listed blocks are partial, and which of their pairs are computed.

    A list then names its whole blocks first and its partial ones after them, so that a kernel's
    loop over whole blocks is the same as without. Where a list has partial blocks, a short last
    block of keys counts among them, of pattern 0 if all of its keys are seen.

    Attributes:
        count: How many of each list's last entries are partial, int32 ``(B|1, H|1, M)`` as
            ``kv_count``.
        pattern: The pattern of each entry, int32 ``(B|1, H|1, M, K)`` as ``kv_index``; 0 of whole
            blocks.
        bits: The different patterns, int32 ``(P, q_block, ceil(kv_block / 32))``: bit ``c % 32``
            of word ``c // 32`` says whether a row's pair with key ``c`` of the block is computed.
            Pattern 0 is all ones.
    """

    count: Tensor
    pattern: Tensor
    bits: Tensor

    @cached_property
    def in_order_of_threads(self) -> Tensor:
        """The bits as a Hopper consumer reads them, kept with the plan: see ``thread_bits.py``."""
        from vidsparse.kernels.triton.thread_bits import in_order_of_threads

        return in_order_of_threads(self.bits)

    def contiguous(self) -> tuple[Tensor, Tensor, Tensor]:
        """Its tensors without gaps: the first two then have the strides of such lists."""
        return self.count.contiguous(), self.pattern.contiguous(), self.bits.contiguous()


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockPlan:
    """For each (batch, head, query block), the list of key blocks that are computed.

    The lists have the layout of FlexAttention's ``BlockMask`` and of flash-attn-4's block-sparse
    tensors. The last block of queries and of keys may be short.

    Attributes:
        kv_count: How many key blocks each query block reads, int32 ``(B|1, H|1, M)``.
        kv_index: Which ones, int32 ``(B|1, H|1, M, K)``, ascending in the first ``kv_count``
            entries (observing takes them in any order; of partial blocks see ``Partial``); the
            rest is not read.
        q_len: Query tokens.
        kv_len: Key tokens.
        q_block: Tokens in a query block; with ``q_offsets``, what an engine may tile blocks by.
        kv_block: Tokens in a key block; with ``kv_offsets``, likewise.
        q_offsets: Position where each query block starts, int32 ``(B|1, H|1, M + 1)``, for blocks
            of unequal size (clusters; some may be empty). None cuts every ``q_block``.
        kv_offsets: The same for key blocks, int32 ``(B|1, H|1, N + 1)``.
        pooled: Block means through which skipped blocks take part, or None to drop them.
        partial: Which of the listed blocks are computed in part, of blocks of equal size; None if
            all are whole.
    """

    kv_count: Tensor
    kv_index: Tensor
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    q_offsets: Tensor | None = None
    kv_offsets: Tensor | None = None
    pooled: Pooled | None = None
    partial: Partial | None = None

    @classmethod
    def from_mask(
        cls,
        keep: Tensor,
        *,
        q_len: int,
        kv_len: int,
        q_block: int,
        kv_block: int,
        q_offsets: Tensor | None = None,
        kv_offsets: Tensor | None = None,
    ) -> BlockPlan:
        """Make lists of a block mask, on its device and without a host sync.

        Args:
            keep: Boolean, ``(B|1, H|1, M, N)``, True where a block is computed.
            q_len: Query tokens; this and the others as in the attributes.
            kv_len: Key tokens.
            q_block: Tokens in a query block.
            kv_block: Tokens in a key block.
            q_offsets: Starts of query blocks of unequal size.
            kv_offsets: Starts of key blocks of unequal size.
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
            q_offsets=q_offsets,
            kv_offsets=kv_offsets,
        )

    @property
    def num_q_blocks(self) -> int:
        if self.q_offsets is not None:
            return self.q_offsets.shape[-1] - 1
        return -(-self.q_len // self.q_block)

    @property
    def num_kv_blocks(self) -> int:
        if self.kv_offsets is not None:
            return self.kv_offsets.shape[-1] - 1
        return -(-self.kv_len // self.kv_block)

    @property
    def q_sizes(self) -> Tensor:
        """Tokens in each query block, float32 ``(M,)``, or ``(B|1, H|1, M)`` with offsets."""
        if self.q_offsets is not None:
            return self.q_offsets.diff(dim=-1).float()
        return block_sizes(self.q_len, self.q_block, self.kv_count.device)

    @property
    def kv_sizes(self) -> Tensor:
        """Tokens in each key block, float32 ``(N,)``, or ``(B|1, H|1, N)`` with offsets."""
        if self.kv_offsets is not None:
            return self.kv_offsets.diff(dim=-1).float()
        return block_sizes(self.kv_len, self.kv_block, self.kv_count.device)

    @property
    def density(self) -> float:
        """Computed query-key pairs over all pairs, exact with blocks of any size.

        A partial block is computed, then masked: it counts as a whole one. A stand-in counts as the
        one pair a query that it is. Reads one number back from the device.
        """
        return float(self.head_density().mean())

    def head_density(
        self, *, q_sizes: Tensor | None = None, kv_sizes: Tensor | None = None
    ) -> Tensor:
        """Density of each head, float32 ``(B|1, H|1)``, without a host sync.

        Args:
            q_sizes: As the attribute, where somebody has it.
            kv_sizes: Likewise.
        """
        q_sizes = self.q_sizes if q_sizes is None else q_sizes
        if self.q_offsets is None and self.kv_offsets is None:
            return density_of_lists(
                self.kv_count, self.kv_index, q_sizes, kv_block=self.kv_block,
                q_len=self.q_len, kv_len=self.kv_len, stand_ins=self.pooled is not None,
            )  # fmt: skip
        keys = (self.kv_sizes if kv_sizes is None else kv_sizes).unsqueeze(-2)
        mask = self.to_block_mask()
        skipped = 0.0 if self.pooled is None else (keys > 0).float()
        kept_keys = torch.where(mask, keys, skipped).sum(dim=-1)
        return ((kept_keys * q_sizes).sum(dim=-1) / (self.q_len * self.kv_len)).float()

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
        rows = block_of_token(self.q_len, self.q_block, self.q_offsets)
        columns = block_of_token(self.kv_len, self.kv_block, self.kv_offsets)
        mask, device = self.to_block_mask(), self.kv_count.device
        rows, columns = rows.to(device)[..., None], columns.to(device)[..., None, :]
        batch, heads = torch.broadcast_shapes(mask.shape[:2], rows.shape[:2], columns.shape[:2])
        mask = mask.expand(batch, heads, -1, -1)
        mask = mask.gather(2, rows.expand(batch, heads, -1, mask.shape[-1]))
        mask = mask.gather(3, columns.expand(batch, heads, mask.shape[2], -1))
        if self.partial is None:
            return mask
        return mask & self.bits_of_rows(torch.arange(self.q_len, device=device))

    def pattern_of_blocks(self) -> Tensor:
        """The pattern of each block, int32 ``(B|1, H|1, M, N)``; 0 of whole and skipped ones."""
        assert self.partial is not None
        used = torch.arange(self.kv_index.shape[-1], device=self.kv_index.device)
        used = used < self.kv_count[..., None]
        patterns = torch.zeros(
            *self.kv_count.shape, self.num_kv_blocks, dtype=torch.int32, device=used.device
        )
        listed, pattern = self.kv_index.where(used, 0).long(), self.partial.pattern.where(used, 0)
        return patterns.scatter_add_(-1, listed, pattern)

    def pairs_of(self, patterns: Tensor) -> Tensor:
        """Which pairs blocks side by side hold, given their patterns, int64 ``(..., number)``.

        Returns:
            Boolean ``(..., q_block, number * kv_block)``.
        """
        assert self.partial is not None
        column = torch.arange(self.kv_block, device=patterns.device)
        words = self.partial.bits[patterns].transpose(-3, -2)  # (..., q_block, number, words)
        return (words[..., column // WORD] >> (column % WORD) & 1).bool().flatten(-2)

    def bits_of_rows(self, rows: Tensor) -> Tensor:
        """Which keys the patterns show to some queries, boolean ``(B|1, H|1, rows, kv_len)``.

        All of those in blocks that are whole or skipped.

        Args:
            rows: Positions of queries, int64 ``(rows,)``.
        """
        assert self.partial is not None
        key = torch.arange(self.kv_len, device=rows.device)
        patterns = self.pattern_of_blocks()[..., rows // self.q_block, :]
        patterns = patterns[..., key // self.kv_block].long()
        column = key % self.kv_block
        words = self.partial.bits[patterns, (rows % self.q_block)[:, None], column // WORD]
        return (words >> (column % WORD) & 1).bool()

    def nbytes(self) -> int:
        """Bytes held by the plan's tensors."""
        tensors = [self.kv_count, self.kv_index, self.q_offsets, self.kv_offsets]
        if self.pooled is not None:
            tensors += [self.pooled.key, self.pooled.value, self.pooled.size]
        if self.partial is not None:
            tensors += self.partial.contiguous()
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def dense_plan(like: BlockPlan) -> BlockPlan:
    """The plan that skips nothing, of the blocks of another; shared by all heads."""
    device = like.kv_count.device
    rows, columns = like.num_q_blocks, like.num_kv_blocks
    index = torch.arange(columns, dtype=torch.int32, device=device).expand(1, 1, rows, -1)
    return dataclasses.replace(
        like,
        kv_count=torch.full((1, 1, rows), columns, dtype=torch.int32, device=device),
        kv_index=index.contiguous(),
        pooled=None,
        partial=None,
    )


def block_sizes(length: int, block: int, device: torch.device | str | None = None) -> Tensor:
    """Tokens in each block, float32 ``(ceil(length / block),)``; the last may be short.

    Example:
        >>> block_sizes(10, 4)
        tensor([4., 4., 2.])
    """
    starts = torch.arange(0, length, block, device=device)
    return (length - starts).clamp(max=block).float()


def block_of_token(
    length: int,
    block: int,
    offsets: Tensor | None = None,
    order: Tensor | None = None,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """The block that holds each token, int64 ``(B|1, H|1, length)``.

    Args:
        length: Tokens.
        block: Tokens in a block.
        offsets: Where blocks start, int32 ``(B|1, H|1, N + 1)``, where their sizes differ.
        order: Which token is at each position, int32 ``(B|1, H|1, length)``; None if none moved.
        device: Of the result; that of ``offsets`` or ``order`` when None.
    """
    if device is None:
        device = next((x.device for x in (offsets, order) if x is not None), None)
    offsets, order = (None if x is None else x.to(device) for x in (offsets, order))
    position = torch.arange(length, device=device)
    if order is not None:
        position = torch.empty_like(order).scatter_(
            -1, order.long(), position.to(order.dtype).expand_as(order).contiguous()
        )
    else:
        position = position.expand(1, 1, -1)
    if offsets is None:
        return position.long() // block
    batch, heads = torch.broadcast_shapes(offsets.shape[:2], position.shape[:2])
    ends = offsets[..., 1:].expand(batch, heads, -1).contiguous()
    position = position.expand(batch, heads, -1).contiguous().to(ends.dtype)
    return torch.searchsorted(ends, position, right=True)
