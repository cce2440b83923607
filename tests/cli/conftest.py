import multiprocessing
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from vidsparse.cli import run
from vidsparse.pipelines.running.checkpoints import TINY

PIPELINES = Path(__file__).parents[1] / "pipelines"
BUILDERS = runpy.run_path(str(PIPELINES / "tiny_pipelines.py"))["BUILDERS"]
EDITS = runpy.run_path(str(PIPELINES / "tiny_edits.py"))
TEXT = {"cogvideox": 226, "mochi": 256}  # as their pipelines take it by default
SMALL = "--frames 5 --height 80 --width 80 --steps 2 --guidance 1 --set min_tokens=0"


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
def exit_code() -> Callable[[Callable[[], object]], int | None]:
    """What a copy of this process ends with that does something, such as to be killed."""

    def of(work: Callable[[], object]) -> int | None:
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(timeout=200)
        if process.is_alive():
            process.kill()
            pytest.fail("it does not end")
        return process.exitcode

    return of


@pytest.fixture
def small() -> list[str]:
    """200 tokens, made sparse: a run takes a third of a second."""
    return list(SMALL.split())


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The shipped pipeline in a folder that is not the shipped one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in TINY.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each pipeline from text, made once, and of those that take more."""
    root = tmp_path_factory.mktemp("models")
    for name, build in BUILDERS.items():
        text = {"text_tokens": TEXT[name]} if name in TEXT else {}
        build(**text).save_pretrained(root / name, safe_serialization=True)
    EDITS["wan"](root / "wan")
    for kind, source in EDITS["FROM"].items():
        EDITS["turn_into"](kind, root / source, root / kind)
    return root
