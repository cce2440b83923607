"""Plans that are exact to the token: which blocks are whole, which partial, and of those the bits.

Rules of geometry repeat: moved along the grid, a block sees the same pairs. So each different
pattern of pairs is kept once, as bits, and a partial block names its pattern. That takes any rule
in any order of tokens, where coordinates tested in a kernel would need code for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.plan import WORD, BlockPlan, Partial, block_sizes
from vidsparse.kernels.planning.bits import pack_bits

Pairs = Callable[[Tensor, Tensor], Tensor]
"""Whether queries see keys, boolean ``(number, q_block, kv_block)``.

Given are positions, int64 ``(number, q_block, 1)`` and ``(number, 1, kv_block)``.
"""

CPU_PAIRS = 2**20  # looked at in one go, in cache
ACCELERATOR_PAIRS = 2**26  # there, launches cost more
MOST_BYTES = 256 * 2**20


def plan_of_pairs(
    pairs: Pairs,
    *,
    q_len: int,
    kv_len: int,
    q_block: int,
    kv_block: int,
    candidates: Tensor,
    whole: Tensor | None = None,
    kinds: Tensor | None = None,
) -> BlockPlan:
    """The plan of exactly the pairs of a rule, the same for all heads.

    Asks for every pair of one candidate of each kind and reads the patterns back from the device:
    made for rules of the geometry, whose plan is kept.

    Args:
        pairs: The rule.
        q_len: Query tokens.
        kv_len: Key tokens.
        q_block: Tokens in a query block.
        kv_block: Tokens in a key block.
        candidates: Blocks that may hold a pair, boolean ``(M, N)``, on the device of the plan.
        whole: Blocks that are computed whole besides, boolean ``(M, N)``.
        kinds: The kind of each block, int64 ``(M, N)``: blocks of one kind hold the same pairs.
            None if nothing is known of them.

    Raises:
        BadInputError: When the patterns need more than 256 MB.
    """
    device = candidates.device
    keep = torch.zeros_like(candidates) if whole is None else whole.clone()
    pattern = torch.zeros(keep.shape, dtype=torch.int32, device=device)
    sizes = block_sizes(q_len, q_block, device)[:, None] * block_sizes(kv_len, kv_block, device)
    table = _Table(q_block, kv_block)
    inside = torch.arange(q_block, device=device), torch.arange(kv_block, device=device)
    asked = (candidates & ~keep).nonzero()
    which = None if kinds is None else kinds[asked[:, 0], asked[:, 1]]
    first, which = _first_of_each(which, len(asked), device)
    found = [torch.zeros(2, 0, dtype=torch.int32, device=device)]
    at_once = CPU_PAIRS if device.type == "cpu" else ACCELERATOR_PAIRS
    for some in asked[first].split(max(1, at_once // (q_block * kv_block))):
        m, n = some.unbind(-1)
        query = (m[:, None] * q_block + inside[0])[:, :, None]
        key = (n[:, None] * kv_block + inside[1])[:, None]
        seen = pairs(query.clamp(max=q_len - 1), key.clamp(max=kv_len - 1))
        seen = seen & (query < q_len) & (key < kv_len)
        number = seen.sum(dim=(1, 2))
        partial = (number > 0) & (number < sizes[m, n])
        patterns = torch.zeros_like(number, dtype=torch.int32)
        patterns[partial] = table.numbers(seen[partial])
        found.append(torch.stack([(number > 0).int(), patterns]))
    some, patterns = torch.cat(found, dim=1)[:, which]
    keep[asked[:, 0], asked[:, 1]] = some > 0
    pattern[asked[:, 0], asked[:, 1]] = patterns
    return plan_of_patterns(
        keep[None, None],
        pattern[None, None],
        table.bits(device),
        q_len=q_len,
        kv_len=kv_len,
        q_block=q_block,
        kv_block=kv_block,
    )


def _first_of_each(
    kinds: Tensor | None, number: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the first of each kind stands, and which of these each one is like, int64."""
    at = torch.arange(number, device=device)
    if kinds is None:
        return at, at
    distinct, which = kinds.unique(return_inverse=True)
    first = torch.full_like(distinct, number).scatter_reduce_(0, which, at, "amin")
    return first, which


def with_whole(plan: BlockPlan, whole: Tensor) -> BlockPlan:
    """A plan of equal blocks, and blocks that are computed whole, boolean ``(B|1, H|1, M, N)``."""
    keep = plan.to_block_mask() | whole
    if plan.partial is None:
        pattern = bits = torch.zeros_like(keep, dtype=torch.int32)
    else:
        pattern = plan.pattern_of_blocks().masked_fill(whole, 0)
        bits = plan.partial.bits
    return plan_of_patterns(
        keep,
        pattern,
        bits,
        q_len=plan.q_len,
        kv_len=plan.kv_len,
        q_block=plan.q_block,
        kv_block=plan.kv_block,
    )


def pack_pairs(tiles: Tensor) -> Tensor:
    """The bits of blocks, int32 ``(number, q_block, words)``.

    Args:
        tiles: Which pairs of each block are computed, boolean ``(number, q_block, kv_block)``.
    """
    return pack_bits(F.pad(tiles, (0, -tiles.shape[-1] % WORD))).view(torch.int32)


def plan_of_patterns(
    keep: Tensor,
    pattern: Tensor,
    bits: Tensor,
    *,
    q_len: int,
    kv_len: int,
    q_block: int,
    kv_block: int,
) -> BlockPlan:
    """Lists of whole blocks, then of partial ones.

    Args:
        keep: Blocks that are computed, boolean ``(B|1, H|1, M, N)``.
        pattern: Of these the patterns, int32, shaped likewise; 0 where all pairs are computed.
        bits: The patterns, int32 ``(P, q_block, ceil(kv_block / 32))``, as in ``Partial``.
        q_len: Query tokens.
        kv_len: Key tokens.
        q_block: Tokens in a query block.
        kv_block: Tokens in a key block.
    """
    plan = BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=q_block, kv_block=kv_block)
    partial = pattern > 0
    if not bool(partial.any()):
        return plan
    if kv_len % kv_block:  # a short block has to end its list
        partial[..., -1] |= keep[..., -1] & partial.any(dim=-1)
    index = torch.where(keep, partial.to(torch.uint8), 2).argsort(dim=-1, stable=True)
    index = index[..., : max(1, int(plan.kv_count.max()))]
    return dataclasses.replace(
        plan,
        kv_index=index.to(torch.int32).contiguous(),
        partial=Partial(
            count=partial.sum(dim=-1, dtype=torch.int32),
            pattern=pattern.expand(index.shape[0], index.shape[1], -1, -1).gather(-1, index),
            bits=bits,
        ),
    )


class _Table:
    """Different patterns in the order in which they were met; the first is all ones."""

    def __init__(self, q_block: int, kv_block: int) -> None:
        ones = torch.full((1, q_block, -(-kv_block // WORD)), -1, dtype=torch.int32)
        self._parts = [ones]
        self._bytes = ones.numel() * ones.element_size()
        self._numbers = {ones.numpy().tobytes(): 0}
        self._blocks = f"{q_block} x {kv_block}"

    def numbers(self, tiles: Tensor) -> Tensor:
        """The number of each pattern, boolean ``(number, q_block, kv_block)``, as int32.

        Raises:
            BadInputError: When there are too many to keep.
        """
        words = pack_pairs(tiles).cpu()
        found, new = [], []
        for at, pattern in enumerate(words.numpy()):
            key = pattern.tobytes()
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                new.append(at)
            found.append(self._numbers[key])
        self._parts.append(words[new])
        if len(self._numbers) * self._bytes > MOST_BYTES:
            raise BadInputError(
                f"the rule makes more than {len(self._numbers):,} different patterns of blocks of "
                f"{self._blocks}, {len(self._numbers) * self._bytes / 1e6:.0f} MB of bits: give "
                "masks=block, or an order whose boxes repeat along the grid"
            )
        return torch.tensor(found, dtype=torch.int32).to(tiles.device)

    def bits(self, device: torch.device) -> Tensor:
        """All patterns, int32 ``(P, q_block, words)``."""
        return torch.cat(self._parts).to(device)
