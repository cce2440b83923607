"""TOML as we write it; Python itself only reads it."""

from __future__ import annotations

import json
import re
from typing import Any


def toml_key(name: str) -> str:
    """A key, in quotes where it needs them.

    Example:
        >>> toml_key("0"), toml_key("transformer_2/0")
        ('0', '"transformer_2/0"')
    """
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def toml_value(value: Any) -> str:
    """A value.

    Raises:
        TypeError: For what TOML has no word for.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(toml_value(each) for each in value)}]"
        case dict():
            inner = ", ".join(f"{toml_key(str(k))} = {toml_value(v)}" for k, v in value.items())
            return f"{{{inner}}}"
    raise TypeError(f"TOML has no word for {value!r}")
