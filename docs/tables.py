"""The tables of models and of published settings; ``python docs/tables.py`` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidsparse.errors import BadInputError
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.models import IMAGE, UNSUPPORTED, VIDEO
from vidsparse.pipelines.published import PUBLISHED

README = Path(__file__).resolve().parent.parent / "README.md"
START = "<!-- python docs/tables.py: start -->"
END = "<!-- python docs/tables.py: end -->"
START_PUBLISHED = "<!-- python docs/tables.py: published, start -->"
END_PUBLISHED = "<!-- python docs/tables.py: published, end -->"
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


def with_tables(text: str) -> str:
    """A text with fresh tables between its markers.

    Raises:
        BadInputError: When a marker is missing.
    """
    text = _with_table(text, START, support_tables(), END)
    return _with_table(text, START_PUBLISHED, published_table(), END_PUBLISHED)


def _with_table(text: str, start: str, table: str, end: str) -> str:
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        missing = end if found_start else start
        raise BadInputError(f"the README has no {missing!r}: put the marker back")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


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


if __name__ == "__main__":
    try:
        README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    except (BadInputError, OSError) as error:
        sys.exit(f"vidsparse: {error}")
