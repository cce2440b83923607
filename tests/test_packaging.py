"""What ``pip install`` and ``python -m build`` ship is what git tracks, and it imports."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vidsparse

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["kernels", "metrics", "pipelines"]
MAX_WHEEL_MB = 30


def tracked_files() -> list[str]:
    """What git tracks and the working tree still has; links count as files, as they do in git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().rstrip("\0").split("\0")
    return [name for name in names if os.path.lexists(ROOT / name)]


def shipped_files() -> set[str]:
    """The tracked files that belong to the package, named as they are imported."""
    names = [
        f"vidsparse/{name}" if name.split("/")[0] in ROOMS else name for name in tracked_files()
    ]
    links = {f"vidsparse/{room}" for room in ROOMS}
    return {
        name
        for name in names
        if name.startswith("vidsparse/")
        and name not in links
        and not Path(name).name.startswith(".")
    }


def build(source: Path, out: Path, *kinds: str) -> None:
    """Run ``python -m build`` offline, with the setuptools of this environment."""
    command = [sys.executable, "-m", "build", "-nx", *kinds, "-o", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of the tracked files alone: no stale ``build/`` or ``egg-info`` can fill a gap."""
    copy = tmp_path_factory.mktemp("source") / "vidsparse"
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def built(source, tmp_path_factory) -> Path:
    """A folder with an sdist and the wheel made *from that sdist*."""
    out = tmp_path_factory.mktemp("built")
    build(source, out)
    return out


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_every_tracked_file_of_the_package(wheel):
    """What is missing here needs a line under ``[tool.setuptools.package-data]``."""
    assert sorted(shipped_files() - names_in(wheel)) == []


def test_tracked_files_include_what_an_install_needs():
    """Else the comparison with git would pass without them."""
    needed = {"vidsparse/py.typed", "vidsparse/kernels/plan.py", "vidsparse/pipelines/session.py"}
    tiny = "vidsparse/pipelines/tiny"
    needed |= {f"{tiny}/model_index.json", f"{tiny}/scheduler/scheduler_config.json"}
    needed |= {f"{tiny}/{part}/config.json" for part in ["text_encoder", "transformer", "vae"]}
    needed |= {
        f"{tiny}/{part}/diffusion_pytorch_model.safetensors" for part in ["transformer", "vae"]
    }
    needed |= {f"{tiny}/text_encoder/model.safetensors", f"{tiny}/tokenizer/tokenizer.json"}
    template = "vidsparse/metrics/report/template"
    needed |= {f"{template}/{name}" for name in ("page.html.j2", "player.js", "style.css")}
    needed |= {f"{tiny}/judge.safetensors", "vidsparse/kernels/measured.json"}
    needed |= {"vidsparse/kernels/native/attend.cpp"}
    assert needed - shipped_files() == set()


def test_wheel_has_nothing_else(wheel):
    extra = names_in(wheel) - shipped_files()
    assert sorted(name for name in extra if ".dist-info/" not in name) == []


def test_wheel_carries_the_license_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = {n.split("/", 1)[1]: n for n in archive.namelist() if ".dist-info/" in n}
        assert archive.read(info["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert b"vidsparse = vidsparse.cli:main" in archive.read(info["entry_points.txt"])


def test_the_release_has_one_number(wheel):
    version = vidsparse.__version__
    assert wheel.name.startswith(f"vidsparse-{version}-")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([^\]]+)\]", changes, re.MULTILINE)[0] == version


def test_wheel_is_small_enough_to_ship(wheel):
    assert wheel.stat().st_size < MAX_WHEEL_MB * 1e6


def test_wheel_weights_are_the_real_bytes(wheel):
    """A pointer file of git LFS would import, and fail at the first run."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            if item.filename.endswith(".safetensors"):
                tracked = ROOT / item.filename.removeprefix("vidsparse/")
                assert item.file_size == tracked.stat().st_size > 100_000


def test_wheel_imports_where_nothing_else_of_the_project_is(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = "import vidsparse, vidsparse.kernels.plan as p; print(vidsparse.__file__, p.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(site) for file in done.stdout.split())


def test_sdist_has_real_files_where_the_checkout_has_links(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {member.name.split("/", 1)[-1]: member for member in archive.getmembers()}
    assert sorted(name for name, member in members.items() if member.issym()) == []
    assert sorted(shipped_files() - {n for n, member in members.items() if member.isfile()}) == []


def test_wheel_from_the_checkout_equals_the_one_from_the_sdist(source, wheel, tmp_path):
    build(source, tmp_path, "--wheel")
    (direct,) = tmp_path.glob("*.whl")
    assert names_in(direct) == names_in(wheel)
