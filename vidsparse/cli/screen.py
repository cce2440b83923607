"""What the user sees: answers on stdout; progress, notes and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
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

if TYPE_CHECKING:
    from vidsparse.stats import Stats

OnStep = Callable[[int, int], None]


def answer(content: str | Table) -> None:
    """Print a result."""
    _print(Console(highlight=False), content)


def answer_json(content: Mapping[str, Any]) -> None:
    """Print a result for a program."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def note(sentence: str) -> None:
    """Print what the user should know, beside the result."""
    _print(Console(stderr=True, highlight=False), f"[dim]{plain_text(sentence)}[/dim]")


def complain(error: object) -> None:
    """Print an error as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"vidsparse: {text}", file=sys.stderr)


def plain_table(**columns: str) -> Table:
    """Make an empty table; ``columns`` are heading=justification."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
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
    """Keep the warnings and log lines of libraries off the screen."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def plain_text(text: str) -> str:
    """Text in which brackets are no markup."""
    return text.replace("[", r"\[")


def _print(console: Console, content: str | Table) -> None:
    console.print(content, soft_wrap=isinstance(content, str))
