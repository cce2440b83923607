"""What every test shares: no network, a fixed seed, and GPU tests only where there is one."""

import functools
import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel


@pytest.fixture(autouse=True)
def seed():
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # which would format a stack, for an error that never comes
        torch.default_generator.manual_seed(0)


@pytest.fixture
def nothing_stays_registered():
    """Presets and parts that a test registers are gone after it."""
    from vidsparse import presets
    from vidsparse.policies.parts import PARTS

    tables: list[dict[str, Any]] = [presets._presets, presets._origins, *PARTS.values()]
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(scope="session")
def device():
    """Where kernels are tested: the GPU, or the CPU through Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def cpu_engine():
    """The engine that runs plans on a CPU here: compiled where there is a compiler."""
    from vidsparse.kernels.engines.case import Case
    from vidsparse.kernels.engines.table import choose_engine

    return choose_engine(Case(device_type="cpu", dtype=torch.float32)).engine


@pytest.fixture(scope="session")
def quick_imports(tmp_path_factory):
    """A folder for ``PYTHONPATH`` that hides what diffusers imports only because tests need it.

    Half of the seconds that a new process takes to import everything; users have none of it.
    """
    folder = tmp_path_factory.mktemp("quick")
    hide = "sys.modules.update(dict.fromkeys(('bitsandbytes', 'peft', 'torchao')))"
    (folder / "sitecustomize.py").write_text(f"import sys\n\n{hide}\n")
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder), before] if before else [str(folder)])


TESTS = Path(__file__).parent
LONGEST = [
    TESTS / name
    for name in (
        "cli/test_ray.py",
        "kernels/test_portable_compiles.py",
        "kernels/test_hopper_compiles.py",
        "pipelines/test_training.py",
        "pipelines/test_batches.py",
        "cli/test_compare_resume.py",
        "core/test_methods.py",
        "core/test_parameters.py",
        "pipelines/test_compile.py",
        "cli/test_compare.py",
        "pipelines/test_models.py",
        "examples/test_scripts.py",
        "cli/test_generate_resume.py",
        "kernels/engines/test_engines.py",
        "test_packaging.py",
    )
]  # begun first: no process is alone with one at the end

gc.disable()  # while everything is imported, of which nothing is garbage


def pytest_collection_finish():
    """What is imported stays: no later search for garbage looks through it.

    imageio searches after each video that it reads, which else takes a second each.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def what_earlier_modules_left_stays():
    """Nor does a search look through what is still there when the next module begins."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    place = {path: at for at, path in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Triton's interpreter puts its functions in place of the language's once for each function.

    Else it does so at each call of one, by reading the whole language: a third of its time.
    """
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime import interpreter

    put_in_place = interpreter._patch_lang

    @functools.cache
    def once(function):
        put_in_place(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once


@pytest.fixture(autouse=True, scope="session")
def one_launch_configuration():
    """On a GPU, take the first candidate instead of timing all: tests are about results."""
    try:
        from vidsparse.kernels.triton import portable
    except ImportError:
        yield
        return

    class First:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                widest = max(16, 1 << (constants["KV_BLOCK"] - 1).bit_length())
                keys = widest if constants["WITH_MARGIN"] else min(32, widest)
                tiles = portable.Tiles(keys=keys, num_warps=4, num_stages=2)
                portable.forward[grid](*arguments, **constants, **tiles.config().all_kwargs())

            return launch

    tuned, portable._tuned = portable._tuned, First()
    yield
    portable._tuned = tuned


@pytest.fixture(autouse=True, scope="session")
def dense_engines_are_timed_briefly():
    """One call a turn: tests ask that dense engines were timed, not which is the fastest."""
    from vidsparse.comparison import baselines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "AT_LEAST_MS", 0.0)
        yield
