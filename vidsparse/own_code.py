"""The code of parts that are not of this package, condensed: finished work has to know it."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType

SOURCE = "_vidsparse_source"  # of a module that we ran: its text as it was
_MADE = "_vidsparse_code"  # of a class, when it was first met: its file may be edited meanwhile


def digest(parts: Iterable[object]) -> str:
    """Condense the code of those parts whose classes are not of vidsparse.

    The whole file where a class has one, else its own methods. What was found stays with the class,
    also when Ray sends that to another process.

    Returns:
        "" if there are none.
    """
    classes = {type(part) for part in parts}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] != "vidsparse"]
    for cls in own:
        if _MADE not in vars(cls):
            setattr(cls, _MADE, hashlib.sha256(_code_of(cls)).hexdigest())
    found = sorted(vars(cls)[_MADE] for cls in own)
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16] if found else ""


def _code_of(cls: type) -> bytes:
    module = sys.modules.get(cls.__module__)
    if (text := getattr(module, SOURCE, None)) is not None:
        return text
    try:
        file = inspect.getsourcefile(cls)
        return Path(file or "").read_bytes()
    except (TypeError, OSError):  # typed into an interpreter
        methods = [value for value in vars(cls).values() if isinstance(value, FunctionType)]
        return b"".join(marshal.dumps(method.__code__) for method in methods)
