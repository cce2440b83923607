"""What a person sees of long work: one bar over all of its pieces, with the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from vidsparse.cli.screen import busy, hear_libraries, note, plain_text, quiet_libraries
from vidsparse.comparison.pace import Pace
from vidsparse.comparison.reporter import Piece


class Screen:
    """Tells of work on stderr."""

    def note(self, sentence: str) -> None:
        """Print what the user should know, beside the result."""
        note(sentence)

    def loading(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Show that a model is being loaded, and what its libraries warn of."""
        hear_libraries()
        return busy(f"loading {what}")

    def on_worker(self) -> contextlib.AbstractContextManager[object]:
        """Keep what libraries say on a worker off the screen."""
        return quiet_libraries()

    def board(self, number: int, pace: Pace) -> contextlib.AbstractContextManager[Board]:
        """One bar over so many pieces."""
        return overall_bar(number, pace)


class PythonScreen(Screen):
    """The same for a script or a notebook, whose warnings are its own, as is its pipeline."""

    def loading(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Show nothing: the pipeline is there."""
        return contextlib.nullcontext()


class Board:
    """What ``overall_bar`` gives: says which piece is under way and how far it is."""

    def __init__(self, progress: Progress, pace: Pace, number: int) -> None:
        self._progress, self._pace = progress, pace
        self._task = progress.add_task("", total=number, step="")
        self._kind: str | None = None
        self._share, self._started, self._done = 0.0, perf_counter(), 0
        self._number = number

    @contextlib.contextmanager
    def piece(self, piece: Piece) -> Iterator[Board]:
        """Do one piece of work."""
        self._kind, self._share, self._started = piece.kind, 0.0, perf_counter()
        self._progress.update(self._task, description=plain_text(piece.label), step="")
        yield self
        self.finish(piece, perf_counter() - self._started)

    def finish(self, piece: Piece, seconds: float) -> None:
        """A piece of work is done, wherever that was."""
        self._pace.finish(piece.kind, seconds)
        self._kind, self._done = None, self._done + 1
        self._progress.update(self._task, completed=self._done, step="")
        if not _is_live(self._progress.console):
            left = f", about {_clock(self.left())} left" if self._done < self._number else ""
            note(f"{self._done}/{self._number} {piece.label}: {seconds:.1f} s{left}")

    def on_step(self, done: int, total: int) -> None:
        """So many steps of the piece are done."""
        self._share = done / (total + 1)  # decoding comes after the last
        self._progress.update(
            self._task,
            completed=self._done + self._share,
            step="decoding" if done == total else f"step {done}/{total}",
        )

    def left(self) -> float:
        """Seconds left for all pieces."""
        return self._pace.left(self._kind, self._share, perf_counter() - self._started)


@contextlib.contextmanager
def overall_bar(number: int, pace: Pace) -> Iterator[Board]:
    """Show one bar on stderr; where that is no terminal, a line for each piece that is done.

    Args:
        number: How many pieces there will be.
        pace: Guesses the time left.
    """
    left = _Left()
    progress = Progress(
        BarColumn(bar_width=24),
        _Pieces(),
        TimeElapsedColumn(),
        left,
        TextColumn("{task.description} [dim]{task.fields[step]}"),
        console=Console(stderr=True, highlight=False),
        transient=True,
        refresh_per_second=4,
    )
    board = left.board = Board(progress, pace, number)
    if not _is_live(progress.console):
        yield board
        return
    with progress:
        yield board


def _is_live(console: Console) -> bool:
    """Whether a bar can be drawn again and again: on a terminal, or by widgets in a notebook."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _Left(ProgressColumn):
    """The time left for everything."""

    board: Board

    def render(self, task: Task) -> Text:
        left = self.board.left()
        return Text(f"{_clock(left)} left" if left else "", style="progress.remaining")


class _Pieces(MofNCompleteColumn):
    """Whole pieces done, of how many."""

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total or 0)}", style="progress.download")


def _clock(seconds: float) -> str:
    """Write a duration.

    Example:
        >>> _clock(75.2), _clock(3725)
        ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
