"""Which tokens of an attention call take part, in which branch, and how they are laid out.

Models pad text and mask the padding; they stack both branches of guidance in one batch. The core
knows neither: it is handed parts of the batch in which every token takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid

Branches = Callable[[int], Sequence[tuple[slice, str]]]

NEVER = -1e4  # what models add to the score of a key that is masked, or less


class OnlyDense(Exception):
    """The reason why a call can only be dense, in the user's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Entries of a batch that share a guidance branch and a layout.

    Attributes:
        entries: Of the batch.
        branch: Guidance branch.
        sample: Which part of its branch this is.
        grid: Layout of the tokens that take part.
        tokens: Those tokens, in order: a slice, or an index ``(tokens,)`` on the device.
        apart: Text that attends to other tokens than the video does, so by itself; None.
        turn: How often the layer has called attention before, in this forward call, where that is
            not for other entries of the batch.
    """

    entries: slice
    branch: str
    sample: int
    grid: TokenGrid | None
    tokens: slice | Tensor
    apart: slice | None = None
    turn: int = 0

    @classmethod
    def whole(cls, branch: str) -> Part:
        """A call whose layout is not known."""
        return cls(entries=slice(None), branch=branch, sample=0, grid=None, tokens=slice(None))

    def take(self, x: Tensor) -> Tensor:
        """The part of ``(batch, seq, heads, head_dim)``; a view where it can be."""
        return x[self.entries, self.tokens]

    def put(self, out: Tensor, made: Tensor) -> None:
        """Write what was made of the part to its place."""
        out[self.entries, self.tokens] = made

    def covers(self, shape: torch.Size) -> bool:
        """Whether the part is the whole call, done at once."""
        if self.apart is not None:
            return False
        return self.tokens == slice(None) and self.entries.indices(shape[0])[:2] == (0, shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the tokens of one forward call stand.

    Attributes:
        video: Frames, rows and columns of video tokens.
        before: Tokens before the video, from how many are not video and how many of those are
            padding.
        branches: Slices of the batch and their guidance branch, from the size of the batch.
        batch: Its size, where the model calls attention for each entry by itself; None.
        has_own_rows: Whether text before the video attends to other tokens than the video does.
    """

    video: TokenGrid
    before: Callable[[int, int], int]
    branches: Branches
    batch: int | None = None
    has_own_rows: bool = False

    def parts(
        self, shape: torch.Size, valid: Tensor | None, turn: int = 0, singly: bool = False
    ) -> list[Part]:
        """Cut a call, so that no sample's plan depends on who shares its batch.

        Samples that leave out padding are parts of their own, whether or not those beside them
        leave out the same: what they remember would else go by their neighbours.

        Args:
            shape: Of the queries, ``(batch, seq, heads, head_dim)``.
            valid: The tokens that take part, boolean ``(batch, seq)``; None for all.
            turn: How often the layer has called attention before, in this forward call.
            singly: Make each entry of the batch a part of its own anyway.

        Raises:
            OnlyDense: When video tokens are masked.
        """
        batch, length = shape[:2]
        if self.batch is not None and batch < self.batch:
            return [self._entry(turn, length)]
        rows = None if valid is None else valid.cpu()
        device = None if valid is None else valid.device
        return [
            Part(
                entries=entries,
                branch=branch,
                sample=sample,
                grid=self._grid(length, row),
                tokens=_tokens(row, device),
                apart=None if valid is None else self.own_rows(length),
                turn=turn,
            )
            for whole, branch in self.branches(batch)
            for sample, (entries, row) in enumerate(_samples(whole, batch, rows, singly))
        ]

    def own_rows(self, tokens: int) -> slice | None:
        """The text that attends by itself, padding and all."""
        return slice(0, self.text_before(tokens)) if self.has_own_rows else None

    def text_before(self, tokens: int) -> int:
        """Tokens before the video in a sequence without padding."""
        extra = tokens - self.video.tokens
        return self.before(extra, 0) if extra > 0 else 0

    def _entry(self, turn: int, length: int) -> Part:
        """One entry of the batch, without padding."""
        assert self.batch is not None
        for entries, branch in self.branches(self.batch):
            first, stop, _ = entries.indices(self.batch)
            if first <= turn < stop:
                grid = self._grid(length, None)
                return Part(
                    entries=slice(None),
                    branch=branch,
                    sample=turn - first,
                    grid=grid,
                    tokens=slice(None),
                )
        raise OnlyDense(f"attention is called more than once for a batch of {self.batch}")

    def _grid(self, length: int, row: Tensor | None) -> TokenGrid:
        video = self.video
        extra = length - video.tokens
        if extra < 0:
            return video  # does not fit, as the engine will say
        counted = row if row is not None else torch.ones(length, dtype=torch.bool)
        start = self.before(extra, length - int(counted.sum()))
        end = start + video.tokens
        if not counted[start:end].all():
            raise OnlyDense("the model masks video tokens")
        prefix, suffix = (int(part.sum()) for part in (counted[:start], counted[end:]))
        return TokenGrid(video.frames, video.height, video.width, prefix, suffix)


def key_padding(mask: Any, shape: torch.Size, own_rows: slice | None = None) -> Tensor:
    """The tokens that take part, where that is all that a mask says.

    Reads the mask back from its device, unless it is spread over the queries by a stride of 0.

    Args:
        mask: Boolean, or added to the scores; ``(batch, keys)`` or ``(batch, heads, queries,
            keys)``, with 1 where it is the same for all.
        shape: Of the queries, ``(batch, seq, heads, head_dim)``.
        own_rows: The first queries, if they may attend to other keys than the rest.

    Returns:
        Boolean ``(batch, seq)``.

    Raises:
        OnlyDense: When it says more: other keys for other queries or heads, or a bias.
    """
    batch, length = shape[:2]
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] != length:
        raise OnlyDense("the model passes an attention mask of an unknown kind")
    if mask.ndim == 2 and mask.shape[0] not in (1, batch):
        raise OnlyDense("the model passes an attention mask for each query")
    mask = mask.as_subclass(Tensor)
    mask = mask[:, None, None] if mask.ndim == 2 else mask
    if mask.stride(-2) == 0:  # the same for all queries, whatever its shape
        mask = mask[:, :, :1]
    if mask.stride(1) == 0:
        mask = mask[:, :1]
    if own_rows is not None and mask.shape[-2] > 1:
        mask = mask[:, :, own_rows.stop :]
    taking = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not (taking | (mask <= NEVER)).all():
        raise OnlyDense("the model adds a bias to attention scores")
    has_all_rows = mask.shape[-2] == length > 1
    valid = taking[:, 0].diagonal(dim1=-2, dim2=-1) if has_all_rows else taking[:, 0, -1]
    if mask.shape[1:3] != (1, 1) and not _same_for_all(taking, valid):
        raise OnlyDense("the model passes an attention mask that differs between queries")
    return valid.expand(batch, length)


def _same_for_all(taking: Tensor, valid: Tensor) -> bool:
    """Whether all queries attend to the valid keys; those that are padding may do without."""
    keys, queries = valid[:, None, None], valid[:, None, :, None]
    if (taking == keys).all():
        return True
    return taking.shape[-2] == valid.shape[-1] and bool((taking == queries & keys).all())


def _samples(
    entries: slice, batch: int, rows: Tensor | None, singly: bool
) -> Iterator[tuple[slice, Tensor | None]]:
    """Entries of a batch with their valid tokens; all at once where every token is valid."""
    if rows is None and not singly:
        yield entries, None
        return
    for entry in range(*entries.indices(batch)):
        row = None if rows is None or rows[entry].all() else rows[entry]
        yield slice(entry, entry + 1), row


def _tokens(row: Tensor | None, device: torch.device | None) -> slice | Tensor:
    if row is None or row.all():
        return slice(None)
    index = row.nonzero()[:, 0]
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return slice(first, last + 1)
    return index.to(device)
