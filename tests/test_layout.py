"""The folders beside ``vidsparse`` are its rooms: linked into it, each importing only downwards."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["kernels", "metrics", "pipelines"]
OUTPUTS = {"build", "demo", "dist", "node_modules", "out", "site"}


@pytest.mark.parametrize("name", ROOMS)
def test_folder_is_linked_into_the_package(name):
    link = ROOT / "vidsparse" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert link.resolve() == ROOT / name


def test_no_room_is_a_regular_package_or_a_module():
    """With an ``__init__.py``, ``import kernels`` in the checkout would hide Hugging Face's."""
    found = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name[0] != "." and name not in OUTPUTS]
        if Path(folder).name in ROOMS and "__init__.py" in files:
            found.append(Path(folder, "__init__.py"))
        found += [Path(folder, f"{name}.py") for name in ROOMS if f"{name}.py" in files]
    assert found == []


def test_pyright_checks_the_rooms():
    """It follows no links: without their own entries it would pass, having read none of them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = config["tool"]["pyright"]["include"]
    assert {f"vidsparse/{name}" for name in ROOMS} <= set(listed)


def run_in_the_checkout(script: str) -> str:
    """Run ``python -c script`` where the current folder, the checkout, comes first on the path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hugging_face_kernels_is_importable_from_the_checkout():
    """Fails, never skips, where the package is missing: the ``dev`` extra has it for this test."""
    script = "from kernels import get_kernel; import kernels; print(kernels.__file__)"
    assert not Path(run_in_the_checkout(script)).is_relative_to(ROOT / "kernels")


def test_importing_vidsparse_imports_no_heavy_library():
    script = (
        "import sys, torch; before = set(sys.modules); import vidsparse; "
        "print(*({'diffusers', 'transformers', 'triton'} & (sys.modules.keys() - before)))"
    )
    assert run_in_the_checkout(script) == ""


class Import(NamedTuple):
    """One imported name, dotted from its top-level package, and where it stands."""

    name: str
    path: Path
    line: int
    at_import: bool  # runs when the module is imported: in no function, not under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.name}"


def imports_of(file: Path) -> Iterator[Import]:
    """Every import statement of a file, as one dotted name for each thing it imports."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                names = [f"{module}.{alias.name}" for alias in node.names]
            case _:
                names = []
        for name in names:
            yield Import(name, file.relative_to(ROOT), getattr(node, "lineno", 0), at_import)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import and not deferred)

    return walk(ast.parse(file.read_text(encoding="utf-8")), at_import=True)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or inside one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def may_kernels(found: Import) -> bool:
    if within(found.name, "vidsparse"):
        return within(found.name, "vidsparse.kernels", "vidsparse.errors")
    return not within(found.name, "diffusers", "transformers")


def may_core(found: Import) -> bool:
    if found.path == Path("vidsparse/__init__.py") and not found.at_import:
        return True
    rooms = ["vidsparse.pipelines", "vidsparse.metrics", "vidsparse.cli"]
    return not within(found.name, *rooms, "diffusers", "transformers", "triton")


def may_metrics(found: Import) -> bool:
    if within(found.name, "vidsparse.metrics"):
        return not within(found.name, "vidsparse.metrics.report")
    libraries = ["torch", "torchmetrics", "numpy", "scipy", "cv2", "av", "safetensors"]
    libraries += ["transformers", "vidsparse.errors"]
    return found.name.split(".")[0] in sys.stdlib_module_names or within(found.name, *libraries)


def may_running(found: Import) -> bool:
    return not within(found.name, "vidsparse.metrics", "vidsparse.cli")


def may_pipelines(found: Import) -> bool:
    """What plugs into a pipeline knows nothing of who loads and runs one."""
    return may_running(found) and not within(found.name, "vidsparse.pipelines.running")


def files_under(folder: str, *without: str) -> list[Path]:
    """The Python files of a folder, links not followed, less those under some of its entries."""
    files = (ROOT / folder).rglob("*.py")
    return sorted(f for f in files if f.relative_to(ROOT / folder).parts[0] not in without)


FLOORS: dict[str, tuple[list[Path], Callable[[Import], bool]]] = {
    "kernels": (files_under("kernels"), may_kernels),
    "core": (files_under("vidsparse", *ROOMS, "cli", "__main__.py"), may_core),
    "metrics": (files_under("metrics", "report"), may_metrics),
    "running": (files_under("pipelines/running"), may_running),
    "pipelines": (files_under("pipelines", "running"), may_pipelines),
}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_what_is_below_it(floor):
    files, allowed = FLOORS[floor]
    found = [name for file in files for name in imports_of(file)]
    assert found, f"no imports found in {floor}: this test would check nothing"
    assert [str(name) for name in found if not allowed(name)] == []


def test_imports_inside_the_package_are_absolute():
    """A relative import would also pass under the floors unseen."""
    files = [*files_under("vidsparse", *ROOMS), *(f for room in ROOMS for f in files_under(room))]
    found = [name for file in files for name in imports_of(file)]
    assert [str(name) for name in found if name.name.startswith(".")] == []
