"""The table as people see it: what is refused and why, and what the pages of docs/ say."""

import ast
import re
import runpy
from pathlib import Path

import diffusers
import pytest
from torch import nn

import vidsparse
from vidsparse.pipelines.models import IMAGE, MODELS, UNSUPPORTED, VIDEO

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tables.py"))
DOCS, END, START, TABLES = SCRIPT["DOCS"], SCRIPT["END"], SCRIPT["START"], SCRIPT["TABLES"]
support_tables, with_table = SCRIPT["support_tables"], SCRIPT["with_table"]


def named(name, *bases):
    return type(name, bases or (nn.Module,), {})()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_sparse_is_refused_in_one_sentence_with_its_reason(name):
    with pytest.raises(vidsparse.BadInputError) as refused:
        vidsparse.sparsify(named(name))
    message = str(refused.value)
    assert message.startswith(f"vidsparse cannot make {name} sparse: {UNSUPPORTED[name]}")
    assert message.endswith("run it without vidsparse")


def test_a_class_of_ones_own_is_what_it_is_derived_from():
    base = type("SanaTransformer2DModel", (nn.Module,), {})
    with pytest.raises(vidsparse.BadInputError, match="cannot make SanaTransformer2DModel sparse"):
        vidsparse.sparsify(named("Mine", base))


def test_an_unknown_class_is_told_where_the_known_ones_are():
    match = rf"not know the transformer Mine; it knows the {len(MODELS)} of docs/models.md"
    with pytest.raises(vidsparse.BadInputError, match=match):
        vidsparse.sparsify(named("Mine"))
    page = (DOCS / "models.md").read_text()
    assert all(f"`{name}`" in page for name in MODELS)


def test_no_class_stands_in_two_rows_and_each_is_one_of_diffusers():
    listed = [name for row in VIDEO + IMAGE for name in row.transformers] + list(UNSUPPORTED)
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(diffusers, name)] == []


def test_rows_said_to_be_tested_in_a_pipeline_are():
    """Their transformers are built in the tests of whole pipelines."""
    here = Path(__file__).parent
    files = [here / "tiny_pipelines.py", here / "conftest.py"]
    found = {
        node.value if isinstance(node, ast.Constant) else node.id
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant | ast.Name)
    }
    in_pipelines = {row.name for row in VIDEO + IMAGE if set(row.transformers) & found}
    assert in_pipelines == {row.name for row in VIDEO + IMAGE if row.tested == "pipeline"}


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_of_a_page_are_up_to_date(page):
    text = (DOCS / page).read_text()
    assert with_table(text, TABLES[page](), page) == text, "run python docs/tables.py"


def test_the_tables_are_tables():
    lines = support_tables().splitlines()
    supported, refused = lines[: lines.index("")], lines[lines.index("") + 1 :]
    cells = [re.split(r"(?<!\\)\|", line) for line in supported]
    assert {len(row) for row in cells} == {8}
    assert len(supported) == len(VIDEO + IMAGE) + 2
    assert len(refused) == len(UNSUPPORTED) + 2


@pytest.mark.parametrize("text", ["no markers", START, END])
def test_a_page_without_its_markers_is_refused(text):
    with pytest.raises(vidsparse.BadInputError, match="put the marker back"):
        with_table(text, "| a |", "models.md")
