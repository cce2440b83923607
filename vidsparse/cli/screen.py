"""What the user sees: answers on stdout; progress, notes and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
def step_bar(label: str, steps: int, density: Callable[[], float | None]) -> Iterator[OnStep]:
    """Show steps done, time left and the density of the step just done.

    Args:
        label: What is running.
        steps: How many steps there will be.
        density: Read after each step; None hides it.
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
            shown = "[dim]decoding[/dim]" if done == total else shown_density()
            progress.update(task, completed=done, total=total, density=shown)

        def shown_density() -> str:
            now = density()
            return "" if now is None else f"[dim]density[/dim] {now:.2f}"

        yield on_step
        progress.update(task, density=shown_density())


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
