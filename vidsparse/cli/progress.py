"""One bar over many pieces of work, with the time left for all of them."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import mean
from time import perf_counter
from typing import Protocol

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

from vidsparse.cli.screen import note, plain_text


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


class Pace:
    """Guesses the time left: of a kind that was seen, its mean; of another, the mean of all.

    Args:
        kinds: Of all pieces that are still to do.
        known: Seconds that pieces took before, by kind.
        workers: How many pieces are done at a time.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        known: dict[str, list[float]] | None = None,
        workers: int = 1,
    ) -> None:
        self._workers = workers
        self._to_do = Counter(kinds)
        self._seen: defaultdict[str, list[float]] = defaultdict(list, known or {})

    def finish(self, kind: str, seconds: float) -> None:
        """A piece is done."""
        self._to_do[kind] -= 1
        self._seen[kind].append(seconds)

    def left(self, kind: str | None = None, share: float = 0.0, seconds: float = 0.0) -> float:
        """Seconds left, with one piece under way; 0 while nothing is known.

        Args:
            kind: Of the piece under way.
            share: How much of it is done, in [0, 1].
            seconds: Since it began.
        """
        seen = {name: mean(values) for name, values in self._seen.items() if values}
        if kind is not None and kind not in seen and share > 0:
            seen[kind] = seconds / share
        if not seen:
            return 0.0
        typical = mean(seen.values())
        total = sum(count * seen.get(name, typical) for name, count in self._to_do.items())
        if kind is not None:
            expected = seen.get(kind, typical)
            total -= min(max(share * expected, seconds), expected)
        return max(total, 0.0) / self._workers


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
        if not self._progress.console.is_terminal:
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
    if not progress.console.is_terminal:
        yield board
        return
    with progress:
        yield board


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
