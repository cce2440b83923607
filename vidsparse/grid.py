"""The token grid: how a self-attention sequence is laid out, all the core knows of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vidsparse.errors import BadInputError

_N = "([0-9]{1,9})"  # longer numbers are no size of anything
_GRID = rf"(?:{_N}\+)?{_N}x{_N}x{_N}(?:\+{_N})?"


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Text tokens, then frames x height x width video tokens in raster order, then text tokens.

    An image is one frame.

    Attributes:
        frames: Latent frames.
        height: Rows of tokens in a frame.
        width: Columns of tokens in a frame.
        prefix: Text tokens before the video.
        suffix: Text tokens after the video.

    Example:
        >>> grid = TokenGrid.parse("21x45x80")
        >>> grid.tokens, str(grid)
        (75600, '21x45x80')
    """

    frames: int
    height: int
    width: int
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or min(self.prefix, self.suffix) < 0:
            raise BadInputError(
                "a token grid needs at least one frame, row and column and no negative text "
                f"length, got {self!r}"
            )

    @classmethod
    def parse(cls, text: str) -> TokenGrid:
        """Read ``FRAMESxHEIGHTxWIDTH``, with ``+N`` for suffix or ``N+`` for prefix text tokens.

        Raises:
            BadInputError: When the text is not a grid.

        Example:
            >>> TokenGrid.parse("226+13x30x45")
            TokenGrid(frames=13, height=30, width=45, prefix=226, suffix=0)
        """
        match = re.fullmatch(_GRID, text.strip().lower())
        if match is None:
            raise BadInputError(
                f"cannot read the grid {text!r}: write FRAMESxHEIGHTxWIDTH in tokens, as 21x45x80, "
                "with text tokens before (226+13x30x45) or after (33x45x80+256)"
            )
        prefix, frames, height, width, suffix = (int(x or 0) for x in match.groups())
        return cls(frames, height, width, prefix, suffix)

    @property
    def frame_tokens(self) -> int:
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        return self.frames * self.frame_tokens

    @property
    def tokens(self) -> int:
        return self.prefix + self.video_tokens + self.suffix

    def __str__(self) -> str:
        before = f"{self.prefix}+" if self.prefix else ""
        after = f"+{self.suffix}" if self.suffix else ""
        return f"{before}{self.frames}x{self.height}x{self.width}{after}"
