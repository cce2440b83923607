"""Versions of Python and of the packages that vidsparse uses."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

VERSION = "0.2.0"
PACKAGES = ("vidsparse", "torch", "diffusers", "transformers", "triton", "imageio", "av")
OPTIONAL = ("flash-attn-4", "xformers")


def versions() -> dict[str, str | None]:
    """Version of Python and of the packages we use; None for what is not installed."""
    return {"python": platform.python_version()} | {
        name: VERSION if name == "vidsparse" else _version(name) for name in (*PACKAGES, *OPTIONAL)
    }


@cache
def _version(package: str) -> str | None:
    if package == "torch":
        import torch

        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
