"""The tables of models and of what is published; ``python docs/tables.py`` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vidsparse.as_published import AS_PUBLISHED
from vidsparse.errors import BadInputError
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.models import IMAGE, UNSUPPORTED, VIDEO
from vidsparse.pipelines.published import PUBLISHED

DOCS = Path(__file__).resolve().parent
START = "<!-- python docs/tables.py: start -->"
END = "<!-- python docs/tables.py: end -->"
COLUMNS = ("model", "transformer", "self-attention", "other tokens", "guidance", "tested")


def support_tables() -> str:
    """What is supported, and what is not and why, in Markdown."""
    supported = [_row(model) for model in VIDEO + IMAGE]
    refused = [(f"`{name}`", reason) for name, reason in sorted(UNSUPPORTED.items())]
    return "\n\n".join([_table(COLUMNS, supported), _table(("refused", "because"), refused)])


def published_table() -> str:
    """What presets take on which model, in Markdown."""
    rows = [
        (f"`{row.preset}`", ", ".join(row.releases), f"`{row.describe()}`", row.source)
        for row in PUBLISHED
    ]
    return _table(("preset", "model", "settings", "source"), rows)


def as_published_table() -> str:
    """How near each method is to its paper, in Markdown."""
    rows = [
        (f"`{row.preset}`", *(part or "nothing" for part in (row.rule, row.rounded, row.differs)))
        for row in AS_PUBLISHED
    ]
    columns = ("preset", "as published", "rounded to blocks", "differs, and why")
    return f"### As published, row by row\n\n{_table(columns, rows)}"


def methods_tables() -> str:
    """Settings by model, and what is exact, in Markdown."""
    return f"{published_table()}\n\n{as_published_table()}"


TABLES: dict[str, Callable[[], str]] = {
    "models.md": support_tables,
    "methods.md": methods_tables,
}
"""What makes the table of each page that has one."""


def with_table(text: str, table: str, page: str) -> str:
    """A page with a fresh table between its markers.

    Raises:
        BadInputError: When a marker is missing.
    """
    before, found_start, rest = text.partition(START)
    _, found_end, after = rest.partition(END)
    if not found_start or not found_end:
        missing = END if found_start else START
        raise BadInputError(f"docs/{page} has no {missing!r}: put the marker back")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def _row(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        "<br>".join(f"`{name}`" for name in model.transformers),
        f"`{_readable(model.self_attention)}`",
        _where(model),
        "calls" if model.guidance == "calls" else "one batch",
        model.tested,
    )


def _readable(paths: str) -> str:
    """A regular expression of module names, as a person would write it."""
    replacements = {r"\.\d+": ".N", r"\.": ".", "(single_)?": "[single_]", "(vace_)?": "[vace_]"}
    for part, readable in replacements.items():
        paths = paths.replace(part, readable)
    return paths.replace("2?", "[2]").replace("|", r"\|")


def _where(model: Model) -> str:
    """Where tokens stand that are no video."""
    if callable(model.text):
        return (model.text.__doc__ or "").partition("\n")[0].strip(".").lower()
    words = {"none": "", "prefix": "before", "suffix": "after", "before the video": "before"}
    return words[model.text]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def main() -> None:
    for page, table in TABLES.items():
        path = DOCS / page
        text = with_table(path.read_text(encoding="utf-8"), table(), page)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (BadInputError, OSError) as error:
        sys.exit(f"vidsparse: {error}")
