"""Who is told of the work of a comparison: a terminal, a notebook, or nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from vidsparse.comparison.pace import Pace


class Piece(Protocol):
    """A piece of work.

    Attributes:
        kind: Pieces of one kind take about as long as each other.
        label: For a person.
    """

    @property
    def kind(self) -> str: ...
    @property
    def label(self) -> str: ...


class Board(Protocol):
    """Shows which piece of work is under way, and how far it is."""

    def piece(self, piece: Piece) -> AbstractContextManager[object]:
        """Do one piece of work."""
        ...

    def finish(self, piece: Piece, seconds: float) -> None:
        """A piece of work is done, wherever that was."""

    def on_step(self, done: int, total: int) -> None:
        """So many denoising steps of the piece are done."""


class Reporter(Protocol):
    """Tells a person of the work while it is done; is sent to the workers of a cluster too."""

    def note(self, sentence: str) -> None:
        """Say what the user should know, beside the result."""

    def loading(self, what: str) -> AbstractContextManager[object]:
        """A model is being loaded."""
        ...

    def on_worker(self) -> AbstractContextManager[object]:
        """A worker of a cluster does a piece."""
        ...

    def board(self, number: int, pace: Pace) -> AbstractContextManager[Board]:
        """Show the progress of so many pieces of work, and the time left by ``pace``."""
        ...


class Silent:
    """Tells nobody."""

    def note(self, sentence: str) -> None:
        """Say nothing."""

    def loading(self, what: str) -> AbstractContextManager[object]:
        """Show nothing."""
        return nullcontext()

    def on_worker(self) -> AbstractContextManager[object]:
        """Show nothing."""
        return nullcontext()

    @contextmanager
    def board(self, number: int, pace: Pace) -> Iterator[Board]:
        """Show nothing."""
        yield _SilentBoard()


class _SilentBoard:
    def piece(self, piece: Piece) -> AbstractContextManager[object]:
        return nullcontext()

    def finish(self, piece: Piece, seconds: float) -> None:
        pass

    def on_step(self, done: int, total: int) -> None:
        pass
