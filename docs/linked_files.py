"""A hook of mkdocs: what pages link to outside of docs/ comes along with the site.

On GitHub a page links to ``../benchmarks/results/x.json``, and to folders. In the site that file
lies under ``files/``; a link to a folder becomes its name alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\[[^\]]*\]|\[`[^`]*`\])\((?P<to>(?:\.\./)+[^)\s]+)\)")
PLACE = "files"


def on_files(files: Any, config: Any) -> Any:
    """Add every file outside of docs/ that a page links to."""
    linked = {path for page in files.documentation_pages() for path in _outside(page)}
    for path in sorted(linked):
        if (ROOT / path).is_file():
            name = _name(path)
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point those links to where the files lie in the site."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        path = _path(page.file.src_uri, found["to"])
        if path is None:
            return found[0]
        if not (ROOT / path).is_file():
            return found[1][1:-1]
        return f"{found[1]}({posixpath.relpath(_name(path), here or '.')})"

    return LINK.sub(moved, markdown)


def _outside(page: Any) -> set[str]:
    text = Path(page.abs_src_path).read_text(encoding="utf-8")
    paths = (_path(page.src_uri, found["to"]) for found in LINK.finditer(text))
    return {path for path in paths if path is not None}


def _path(page: str, target: str) -> str | None:
    """Where a link leads, from the root of the repository; None if it stays within docs/."""
    here = posixpath.join("docs", posixpath.dirname(page))
    path = posixpath.normpath(posixpath.join(here, target.partition("#")[0]))
    return None if path.startswith("docs/") else path


def _name(path: str) -> str:
    """Under ``files/``; text that mkdocs would take for a page of its own is shown as it is."""
    return f"{PLACE}/{path}.txt" if path.endswith(".md") else f"{PLACE}/{path}"
