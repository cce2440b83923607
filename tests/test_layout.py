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
    runs: bool  # at some time: not under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.name}"


def imports_of(file: Path, root: Path = ROOT) -> Iterator[Import]:
    """Every import statement of a file below the root, as a dotted name for each thing imported."""

    def walk(node: ast.AST, at_import: bool, runs: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                names = [f"{module}.{alias.name}" for alias in node.names]
            case _:
                names = []
        for name in names:
            yield Import(name, file, getattr(node, "lineno", 0), at_import, runs)
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import and not deferred, runs and not typing)

    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    return walk(tree, at_import=True, runs=True)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or inside one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


UPPER = ("comparison", "bench", "tuning", "calibrating", "cli")  # the floors above the rooms
APPLICATIONS = tuple(f"vidsparse.{name}" for name in UPPER)
COMMAND_LINE = ("typer", "click", "rich")


def may_kernels(found: Import) -> bool:
    if within(found.name, "vidsparse"):
        return within(found.name, "vidsparse.kernels", "vidsparse.errors")
    return not within(found.name, "diffusers", "transformers")


def may_core(found: Import) -> bool:
    if found.path == Path("vidsparse/__init__.py") and not found.at_import:
        return True
    rooms = ["vidsparse.pipelines", "vidsparse.metrics", *APPLICATIONS]
    return not within(found.name, *rooms, "diffusers", "transformers", "triton")


def may_metrics(found: Import) -> bool:
    if within(found.name, "vidsparse.metrics"):
        return not within(found.name, "vidsparse.metrics.report")
    libraries = ["torch", "torchmetrics", "numpy", "scipy", "cv2", "av", "safetensors"]
    libraries += ["transformers", "pydantic", "vidsparse.errors"]
    return found.name.split(".")[0] in sys.stdlib_module_names or within(found.name, *libraries)


def may_running(found: Import) -> bool:
    return not within(found.name, "vidsparse.metrics", *APPLICATIONS)


def may_comparison(found: Import) -> bool:
    above = ("vidsparse.cli", "vidsparse.bench", "vidsparse.tuning", "vidsparse.calibrating")
    return not within(found.name, *above, *COMMAND_LINE)


def may_bench(found: Import) -> bool:
    return not within(found.name, "vidsparse.cli", "vidsparse.tuning", *COMMAND_LINE)


def may_tuning(found: Import) -> bool:
    return not within(found.name, "vidsparse.cli", "vidsparse.bench", *COMMAND_LINE)


def may_calibrating(found: Import) -> bool:
    beside = ("vidsparse.cli", "vidsparse.bench", "vidsparse.tuning")
    return not within(found.name, *beside, *COMMAND_LINE)


def may_pipelines(found: Import) -> bool:
    """What plugs into a pipeline knows nothing of who loads and runs one."""
    return may_running(found) and not within(found.name, "vidsparse.pipelines.running")


def files_under(folder: str, *without: str, root: Path = ROOT) -> list[Path]:
    """The Python files of a folder, links not followed, less those under some of its entries."""
    files = (file.relative_to(root) for file in (root / folder).rglob("*.py"))
    return sorted(f for f in files if f.relative_to(folder).parts[0] not in without)


FLOORS: dict[str, tuple[list[Path], Callable[[Import], bool]]] = {
    "kernels": (files_under("kernels"), may_kernels),
    "core": (files_under("vidsparse", *ROOMS, *UPPER, "__main__.py"), may_core),
    "metrics": (files_under("metrics", "report"), may_metrics),
    "running": (files_under("pipelines/running"), may_running),
    "pipelines": (files_under("pipelines", "running"), may_pipelines),
    "comparison": (files_under("vidsparse/comparison"), may_comparison),
    "bench": (files_under("vidsparse/bench"), may_bench),
    "tuning": (files_under("vidsparse/tuning"), may_tuning),
    "calibrating": (files_under("vidsparse/calibrating"), may_calibrating),
}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_what_is_below_it(floor):
    files, allowed = FLOORS[floor]
    found = [name for file in files for name in imports_of(file)]
    assert found, f"no imports found in {floor}: this test would check nothing"
    assert [str(name) for name in found if not allowed(name)] == []


def all_files(root: Path = ROOT) -> list[Path]:
    """Every Python file of the package."""
    rooms = (f for room in ROOMS for f in files_under(room, root=root))
    return [*files_under("vidsparse", *ROOMS, root=root), *rooms]


def test_imports_inside_the_package_are_absolute():
    """A relative import would also pass under the floors unseen."""
    found = [name for file in all_files() for name in imports_of(file)]
    assert [str(name) for name in found if name.name.startswith(".")] == []


def module_name(file: Path) -> str:
    """How a file of the checkout is imported."""
    parts = file.with_suffix("").parts
    parts = parts if parts[0] == "vidsparse" else ("vidsparse", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Which modules of the package each of them imports when it runs, in functions too."""
    files = {module_name(file): file for file in all_files(root)}

    def imported(name: str) -> str:
        """The module that a dotted name is, or is in; empty when it is none of ours."""
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {imported(found.name) for found in imports_of(file, root) if found.runs}
        - {"", module}
        for module, file in files.items()
    }


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import one another, directly or through others; each circle once."""

    def reached(start: str) -> set[str]:
        found, ahead = set(), [start]
        while ahead:
            new = graph[ahead.pop()] - found
            found |= new
            ahead += new
        return found

    behind = {module: reached(module) for module in graph}
    circles = {
        tuple(sorted(m for m in behind[module] if module in behind[m]))
        for module in graph
        if module in behind[module]
    }
    return sorted(list(circle) for circle in circles)


def test_no_modules_import_one_another():
    """Not even from within a function, which only hides the circle from Python."""
    graph = import_graph()
    assert len(graph) > 100, "this test would check next to nothing"
    assert import_circles(graph) == []


def test_a_circle_is_found_even_when_a_function_hides_it(tmp_path):
    sources = {
        "vidsparse/__init__.py": "from vidsparse.kernels import a",
        "kernels/a.py": "from vidsparse.kernels.deep import b",
        "kernels/deep/b.py": "def late():\n    from vidsparse.kernels.c import thing",
        "kernels/c.py": "import vidsparse.kernels.a\nimport torch",
        "kernels/on_its_way.py": "from vidsparse.kernels import a, beside",
        "kernels/beside.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from vidsparse.kernels.on_its_way import Name"
        ),
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    a, b, c = (f"vidsparse.kernels.{name}" for name in ("a", "deep.b", "c"))
    assert import_circles(import_graph(tmp_path)) == [sorted([a, b, c])]
