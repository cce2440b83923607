"""README and docs/: every link leads somewhere, every generated page is up to date."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "docs", ROOT / "examples", ROOT / "pipelines"]
PAGES = sorted([*ROOT.glob("*.md"), *(page for each in FOLDERS for page in each.rglob("*.md"))])
MOST_LINES = 150
LINK = re.compile(r"\]\((?P<to>[^)\s]+)\)")
IMAGE_OF_HTML = re.compile(r"""(?:src|href)=["'](?P<to>[^"']+)["']""")


def without_code(text):
    """Less blocks of code, where brackets are no links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links_of(page):
    text = without_code(page.read_text(encoding="utf-8"))
    found = [match["to"] for match in [*LINK.finditer(text), *IMAGE_OF_HTML.finditer(text)]]
    return [link for link in found if "://" not in link and not link.startswith("mailto:")]


def anchors_of(page):
    """The anchors of its headings, as GitHub and mkdocs both make them."""
    headings = re.findall(r"^#+ +(.+)$", without_code(page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"[^\w\- ]", "", text.lower()) for text in headings]
    return {re.sub(r" +", "-", text.strip()) for text in plain}


def broken(page, root=ROOT):
    """The links of a page that lead nowhere, or out of the repository."""
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {path}"
        elif not target.is_relative_to(root):
            yield f"{link}: outside of the repository"
        elif anchor and anchor not in anchors_of(target):
            yield f"{link}: {target.name} has no heading {anchor!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_a_page_is_broken(page):
    assert list(broken(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](gone.md) [b](#there) [c](#here)\n```\n[d](gone.py)\n```\n")
    assert [line.partition(":")[0] for line in broken(page, tmp_path)] == ["gone.md", "#there"]


def test_pages_have_links():
    assert len({link for page in PAGES for link in links_of(page)}) > 100


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES


def pages_in(navigation):
    for entry in navigation:
        for value in entry.values():
            yield from pages_in(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    there = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(pages_in(config["nav"])) == sorted(there)


def test_the_pages_of_commands_are_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "command_pages.py"))["pages"]()
    folder = ROOT / "docs" / "commands"
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    assert there == made, "run python docs/command_pages.py"


def test_the_pages_of_commands_name_what_the_help_names(capsys):
    from vidsparse.cli import run

    for page in (ROOT / "docs" / "commands").glob("*.md"):
        capsys.readouterr()
        assert run([page.stem, "--help"]) == 0
        shown = set(re.findall(r"--[a-z][a-z-]+[a-z]", capsys.readouterr().out)) - {"--help"}
        written = page.read_text(encoding="utf-8").partition("## ")[2]
        assert shown <= set(re.findall(r"--[a-z][a-z-]+[a-z]", written)), page.name


def test_paths_that_the_design_names_are_there():
    text = without_code((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    text = text.partition("## The rooms")[2].partition("## The way of a call")[0]
    named = {path for path in re.findall(r"`([\w/]+(?:/|\.py))`", text) if "/" in path}
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
