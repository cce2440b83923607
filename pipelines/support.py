"""The support tables of the README; ``python -m vidsparse.pipelines.support`` writes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidsparse.errors import BadInputError
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.models import IMAGE, UNSUPPORTED, VIDEO

README = Path(__file__).resolve().parent.parent / "README.md"
START = "<!-- python -m vidsparse.pipelines.support: start -->"
END = "<!-- python -m vidsparse.pipelines.support: end -->"
COLUMNS = ("model", "transformer", "self-attention", "other tokens", "guidance", "tested")


def support_tables() -> str:
    """What is supported, and what is not and why, in Markdown."""
    supported = [_row(model) for model in VIDEO + IMAGE]
    refused = [(f"`{name}`", reason) for name, reason in sorted(UNSUPPORTED.items())]
    return "\n\n".join([_table(COLUMNS, supported), _table(("refused", "because"), refused)])


def with_tables(text: str) -> str:
    """A text with fresh tables between its markers.

    Raises:
        BadInputError: When a marker is missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise BadInputError(f"the README has no {END if start else START!r}: put the marker back")
    return f"{before}{START}\n\n{support_tables()}\n\n{END}{after}"


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
