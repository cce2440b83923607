"""Nobody outside a part's own file asks which part it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vidsparse
from vidsparse.policies.parts import KINDS, PARTS

PACKAGE = Path(vidsparse.__file__).parent
PARTS_BY_NAME = {part.__name__: part for table in PARTS.values() for part in table.values()}
NAMES = PARTS_BY_NAME.keys() | {kind.__name__ for kind in KINDS.values()}


def questions(source: str) -> Iterator[str]:
    """What a piece of code asks of the kind of an object, by class or by the name of a class."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
                asked: list[ast.AST] = [classes]
            case ast.Compare(left=left, comparators=others):
                asked = [left, *others]
            case ast.MatchClass(cls=cls):
                asked = [cls]
            case _:
                continue
        for each in (inner for outer in asked for inner in ast.walk(outer)):
            match each:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                    if name in NAMES:
                        yield f"line {each.lineno}: {ast.unparse(node)}"


def own_file(name: str) -> Path:
    return PACKAGE.joinpath(*PARTS_BY_NAME[name].__module__.split(".")[1:]).with_suffix(".py")


def test_no_file_asks_which_part_it_has():
    files = [file for folder in ("", "policies") for file in (PACKAGE / folder).glob("*.py")]
    files += (PACKAGE / "pipelines").rglob("*.py")
    assert own_file("Centroid") in files
    found = {file.name: list(questions(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: asked for name, asked in found.items() if asked} == {}


def test_a_question_is_found():
    asked = "isinstance(part, (Hilbert, int))", 'type(part).__name__ == "Levels"', "part is Tile"
    assert [len(list(questions(each))) for each in asked] == [1, 1, 1]
    assert list(questions("match part:\n    case Random(): pass")) != []
    assert list(questions("isinstance(part, Tensor) and Random()")) == []
