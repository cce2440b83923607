from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from vidsparse.cli import run
from vidsparse.pipelines.running.checkpoints import TINY

SMALL = "--frames 9 --height 96 --width 96 --steps 2 --guidance 1 --set min_tokens=0"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process: ``cli("plan --grid 7x20x20", more, arguments)``."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(line: str, *more: object) -> Outcome:
        capsys.readouterr()
        code = run([*line.split(), *map(str, more)])
        seen = capsys.readouterr()
        return Outcome(code, seen.out, seen.err)

    return call


@pytest.fixture
def small() -> list[str]:
    """432 tokens, made sparse: a run takes two seconds."""
    return list(SMALL.split())


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The shipped pipeline in a folder that is not the shipped one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in TINY.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    return folder
