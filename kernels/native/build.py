"""Compiles ``attend.cpp`` on this machine, once, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("attend.cpp")
FLAGS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma")}
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp")


class CannotBuildError(Exception):
    """Why there is no compiled loop on this machine, in a sentence."""


def why_not() -> str | None:
    """Why the loop cannot run here, or None; compiles it at the first call, in about a second."""
    try:
        load()
    except CannotBuildError as error:
        return str(error)
    return None


def load() -> ctypes.CDLL:
    """The compiled loop.

    Raises:
        CannotBuildError: When it cannot be compiled here; found out once in a process.
    """
    found = _load()
    if isinstance(found, CannotBuildError):
        raise found
    return found


@functools.cache
def _load() -> ctypes.CDLL | CannotBuildError:
    try:
        return ctypes.CDLL(str(_built()))
    except CannotBuildError as error:
        return error
    except OSError as error:
        return CannotBuildError(f"what was compiled cannot be loaded: {error}")


def _built() -> Path:
    """The library, from the user's cache if it was compiled before."""
    if sys.platform != "linux":
        raise CannotBuildError(f"its compiled loop is for Linux, not {sys.platform}")
    name = f"attend-{_digest()}.so"
    folder = _cache()
    if (folder / name).is_file():
        return folder / name
    compiler = shutil.which("g++")
    if compiler is None:
        raise CannotBuildError("it needs g++ once, which is not installed (apt install g++)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, Path(scratch))
            return Path(scratch, "attend.so").replace(folder / name)
    except OSError as error:
        raise CannotBuildError(f"{folder} cannot hold what it compiles: {error.strerror}") from None


def _cache() -> Path:
    """Where programs of this user keep what they can make again."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidsparse"
    except RuntimeError as error:  # a user without a home
        raise CannotBuildError(f"there is no folder for what it compiles: {error}") from None


def _digest() -> str:
    """Of all that decides what is compiled: one cache may serve machines of several kinds."""
    facts = (*OPTIONS, *_flags(), str(_threads()), platform.machine(), torch.__version__)
    return hashlib.sha256(SOURCE.read_bytes() + repr(facts).encode()).hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    """The vector instructions that torch uses here."""
    return FLAGS.get(torch.backends.cpu.get_cpu_capability(), ())


def _threads() -> Path | None:
    """The OpenMP library of torch: with one of its own, idle threads of either would spin."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return min(found, default=None)


def _compile(compiler: str, folder: Path) -> None:
    """Make ``attend.so`` in a folder."""
    threads = _threads()
    link = ["-fopenmp"] if threads is None else [str(threads)]
    steps = (
        [compiler, *OPTIONS, *_flags(), "-c", str(SOURCE), "-o", "attend.o"],
        [compiler, "-shared", "attend.o", "-o", "attend.so", *link],
    )
    for step in steps:
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "no reason")
            raise CannotBuildError(f"g++ cannot compile its loop here: {said.strip()}")
