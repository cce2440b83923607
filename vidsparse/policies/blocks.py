"""A token sequence cut into blocks: sizes, what is always kept, where frames begin and end."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import block_sizes
from vidsparse.state import Kept


@dataclass(frozen=True, eq=False)
class Blocks:
    """A sequence in some order, cut every ``block`` tokens; the last block may be short.

    Text stands where it stood, before and after the video, whatever the order.

    Attributes:
        grid: The layout of the sequence.
        block: Tokens in a block of queries, and of keys unless ``key_block`` says otherwise.
        device: Where tensors are made.
        order: Position ``p`` holds token ``order[p]``, int32 ``(B|1, H|1, seq)``; None is raster.
        q_offsets: Where query blocks of unequal size start, int32 ``(B|1, H|1, M + 1)``.
        kv_offsets: The same for key blocks, int32 ``(B|1, H|1, N + 1)``.
        only: Of which query blocks a mask that needs no data is asked, ascending, int64 ``(R,)``:
            its scores then are ``(1, 1, R, N)``. None asks of all.
        key_block: Tokens in a block of keys; None takes as many as of queries.
        kept: What follows from the grid, the size of blocks and the device alone. Copies in another
            order or in clusters share it, as do the calls of a session.
    """

    grid: TokenGrid
    block: int
    device: torch.device
    order: Tensor | None = None
    q_offsets: Tensor | None = None
    kv_offsets: Tensor | None = None
    only: Tensor | None = None
    key_block: int | None = None
    kept: Kept = field(default_factory=Kept, repr=False)

    @property
    def number(self) -> int:
        """How many equal blocks of ``block`` tokens there are."""
        return -(-self.grid.tokens // self.block)

    @property
    def kv_block(self) -> int:
        """Tokens in an equal block of keys."""
        return self.block if self.key_block is None else self.key_block

    @property
    def rows(self) -> int:
        """How many query blocks there are."""
        return self.number if self.q_offsets is None else self.q_offsets.shape[-1] - 1

    @property
    def columns(self) -> int:
        """How many key blocks there are."""
        if self.kv_offsets is not None:
            return self.kv_offsets.shape[-1] - 1
        return -(-self.grid.tokens // self.kv_block)

    @cached_property
    def sizes(self) -> Tensor:
        """Tokens in each equal block, float32 ``(N,)``."""
        return self._sizes(self.block)

    def _sizes(self, block: int) -> Tensor:
        tokens, device = self.grid.tokens, self.device
        return self.kept.get(("sizes", block), lambda: block_sizes(tokens, block, device))

    @cached_property
    def q_sizes(self) -> Tensor:
        """Tokens in each query block, float32 ``(M,)`` or ``(B|1, H|1, M)``."""
        return self.sizes if self.q_offsets is None else self.q_offsets.diff(dim=-1).float()

    @cached_property
    def kv_sizes(self) -> Tensor:
        """Tokens in each key block, float32 ``(N,)`` or ``(B|1, H|1, N)``."""
        if self.kv_offsets is not None:
            return self.kv_offsets.diff(dim=-1).float()
        return self._sizes(self.kv_block)

    @property
    def kv_starts(self) -> Tensor:
        """Where key blocks start, and where the last one ends, int32 ``(B|1, H|1, N + 1)``."""
        if self.kv_offsets is not None:
            return self.kv_offsets
        starts = torch.arange(self.columns + 1, dtype=torch.int32, device=self.device)
        return (starts * self.kv_block).clamp(max=self.grid.tokens)[None, None]

    @cached_property
    def always_kept(self) -> Tensor:
        """Boolean ``(M|R, N)``: text rows and columns, and of equal blocks the diagonal."""
        if self.q_offsets is not None or self.kv_offsets is not None:
            return self.text_kept
        return self._kept_unless_some("always kept", self._text_or_diagonal)

    def _text_or_diagonal(self) -> Tensor:
        asked, columns = self._asked, self.columns
        start = torch.arange(columns, device=self.device) * self.kv_block
        first, last = start // self.block, (start + self.kv_block - 1) // self.block
        return self._text() | ((asked[:, None] >= first) & (asked[:, None] <= last))

    @cached_property
    def text_kept(self) -> Tensor:
        """Boolean ``(M|R, N)``: text rows and columns alone."""
        rows, columns = self.video_rows, self.video_columns
        ends = (rows.start, rows.stop, columns.start, columns.stop)
        return self._kept_unless_some(("text", self.rows, self.columns, *ends), self._text)

    def _kept_unless_some(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What was made before; of some query blocks alone it is made anew."""
        return self.kept.get(name, make) if self.only is None else make()

    def _text(self) -> Tensor:
        def text(number: int, video: slice) -> Tensor:
            at = torch.arange(number, device=self.device)
            return (at < video.start) | (at >= video.stop)

        of_rows = text(self.rows, self.video_rows)
        return of_rows[self._asked, None] | text(self.columns, self.video_columns)

    @property
    def _asked(self) -> Tensor:
        return torch.arange(self.rows, device=self.device) if self.only is None else self.only

    @property
    def video_rows(self) -> slice:
        """Query blocks that hold nothing but video."""
        return self._video(self.rows, None if self.q_offsets is not None else self.block)

    @property
    def video_columns(self) -> slice:
        """Key blocks that hold nothing but video."""
        return self._video(self.columns, None if self.kv_offsets is not None else self.kv_block)

    def _video(self, number: int, block: int | None) -> slice:
        """Of so many blocks those without text, which stands at the ends; clusters if None."""
        grid = self.grid
        if block is None:
            return slice(int(grid.prefix > 0), number - (grid.suffix > 0))
        first = -(-grid.prefix // block)
        end = (grid.prefix + grid.video_tokens) // block if grid.suffix else number
        return slice(first, max(first, end))

    def first_frame(self, block: int) -> Tensor:
        """Equal blocks that hold a token of the first frame, boolean ``(B|1, H|1, N)``."""
        start, stop = self.grid.prefix, self.grid.prefix + self.grid.frame_tokens
        if self.order is None:
            token = torch.arange(self.grid.tokens, device=self.device)[None, None]
        else:
            token = self.order
        inside = ((token >= start) & (token < stop)).float()
        missing = -self.grid.tokens % block
        return torch.nn.functional.pad(inside, (0, missing)).unflatten(-1, (-1, block)).any(-1)

    @cached_property
    def segments(self) -> Segments:
        """The sequence, in raster order, cut at every block and every frame boundary."""
        return Segments.of(self)


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of tokens that lie in one block and in one frame; all tensors are int64 ``(G,)``.

    Attributes:
        block: The block each run lies in.
        frame: The frame each run lies in, or -1 for text.
        start: Position of its first token inside the frame.
        stop: Position after its last token inside the frame.
    """

    block: Tensor
    frame: Tensor
    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, blocks: Blocks) -> Segments:
        """Cut the sequence of ``blocks``."""
        grid, device = blocks.grid, blocks.device
        video_end = grid.prefix + grid.video_tokens
        cuts = torch.cat(
            [
                torch.arange(0, grid.tokens, blocks.block, device=device),
                torch.arange(grid.prefix, video_end + 1, grid.frame_tokens, device=device),
                torch.tensor([0, grid.tokens], device=device),
            ]
        ).unique()
        first, last = cuts[:-1], cuts[1:]
        is_video = (first >= grid.prefix) & (first < video_end)
        frame = (first - grid.prefix).div(grid.frame_tokens, rounding_mode="floor")
        offset = torch.where(is_video, grid.prefix + frame * grid.frame_tokens, first)
        return cls(
            block=first // blocks.block,
            frame=torch.where(is_video, frame, -1),
            start=first - offset,
            stop=last - offset,
        )

    def of_blocks(self, asked: Tensor) -> Segments:
        """The runs of some blocks."""
        some = torch.isin(self.block, asked)
        return Segments(self.block[some], self.frame[some], self.start[some], self.stop[some])
