"""What the user sees: answers on stdout; progress, notes and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vidsparse.errors import shorten

# Control characters but the end of a line, and what turns the direction of a line around: a
# terminal obeys them, whoever wrote them.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")

if TYPE_CHECKING:
    from vidsparse.stats import Stats

OnStep = Callable[[int, int], None]


def answer(content: str | Table) -> None:
    """Print a result."""
    _print(Console(highlight=False), content)


def answer_json(content: Mapping[str, Any]) -> None:
    """Print a result for a program."""
    print(harmless(json.dumps(content, indent=2, ensure_ascii=False)))


def note(sentence: str) -> None:
    """Print what the user should know, beside the result."""
    _print(Console(stderr=True, highlight=False), f"[dim]{plain_text(sentence)}[/dim]")


def complain(error: object) -> None:
    """Print an error as one line."""
    text = " ".join(shorten(str(error)).split()) or type(error).__name__
    print(f"vidsparse: {harmless(text)}", file=sys.stderr)


def plain_table(**columns: str) -> Table:
    """Make an empty table; ``columns`` are heading=justification."""
    table = _Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name, side in columns.items():
        table.add_column(
            name.replace("_", " "),
            justify="right" if side == "right" else "left",
            overflow="fold",
        )
    return table


def busy(what: str) -> contextlib.AbstractContextManager[object]:
    """Show, on a terminal only, that something is going on."""
    return Console(stderr=True, highlight=False).status(f"[dim]{plain_text(what)}[/dim]")


@contextlib.contextmanager
def step_bar(label: str, steps: int, stats: Stats | None) -> Iterator[OnStep]:
    """Show steps done, time left and the density of the step just done; at the end their mean.

    Args:
        label: What is running.
        steps: How many steps there will be.
        stats: Of the session, read after each step; None for a dense run.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("steps "),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[density]}"),
        console=Console(stderr=True, highlight=False),
    )
    with progress:
        task: TaskID = progress.add_task(plain_text(label), total=steps, density="")

        def on_step(done: int, total: int) -> None:
            now = stats and stats.latest_density
            shown = "[dim]decoding[/dim]" if done == total else _density("density", now)
            progress.update(task, completed=done, total=total, density=shown)

        yield on_step
        mean = stats.mean_density if stats and stats.calls else None
        progress.update(task, density=_density("mean density", mean))


def _density(name: str, value: float | None) -> str:
    return "" if value is None else f"[dim]{name}[/dim] {value:.3f}"


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries say as they are imported off the screen, until they are heard."""
    before = logging.root.manager.disable
    handlers = {name: logging.getLogger(name).handlers for name in _HEARD}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
            for name, own in handlers.items():
                logging.getLogger(name).handlers = own


def hear_libraries() -> None:
    """Show from now on, once each, what diffusers and transformers warn of: it is of the model."""
    from vidsparse.pipelines.running.offline import import_diffusers

    import_diffusers()
    handler = _Notes()
    for name in _HEARD:
        logging.getLogger(name).handlers = [handler]
    logging.disable(logging.NOTSET)


_HEARD = ("diffusers", "transformers")


class _Notes(logging.Handler):
    """Warnings as notes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        said = shorten(_COLOURS.sub("", record.getMessage()).strip())
        if said not in self._said:
            self._said.add(said)
            note(f"{record.name.partition('.')[0]}: {said}")


def plain_text(text: str) -> str:
    """Text in which brackets are no markup and nothing commands a terminal."""
    return harmless(text).replace("[", r"\[")


def harmless(text: str) -> str:
    r"""Text in which characters that command a terminal are written out, as JSON does.

    Example:
        >>> print(harmless("red\x1b[2J"))
        red\u001b[2J
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Table(Table):
    """A table whose cells command no terminal."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(harmless(x) if isinstance(x, str) else x for x in cells), **options)


def _print(console: Console, content: str | Table) -> None:
    content = harmless(content) if isinstance(content, str) else content
    console.print(content, soft_wrap=isinstance(content, str))
