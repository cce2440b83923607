"""``vidsparse doctor``: what is installed, what will be used, and what is missing."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch
import typer

from vidsparse.cli.options import Json
from vidsparse.cli.screen import answer, answer_json, complain, plain_table
from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import ENGINES, choose_engine
from vidsparse.pipelines.checkpoints import TINY

PACKAGES = ("vidsparse", "torch", "diffusers", "transformers", "triton", "imageio", "av")


def doctor(json: Json = False) -> None:
    """Say what is installed, which engine will run, and what is missing."""
    found = examine()
    if json:
        answer_json(found)
    else:
        table = plain_table(what="left", found="left")
        for name, value in _rows(found):
            table.add_row(name, value)
        answer(table)
    if found["missing"]:
        complain(f"missing for the main job: {'; '.join(found['missing'])}")
        raise typer.Exit(1)


def versions() -> dict[str, str | None]:
    """Version of Python and of the packages we use; None for what is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def examine() -> dict[str, Any]:
    """Collect every fact."""
    from vidsparse.pipelines.load import resolve_device

    device, installed = resolve_device("auto"), versions()
    choice = choose_engine(device)
    pipeline, encoder = _shipped_pipeline(), _has_encoder()
    missing = [
        *(f"{name} is not installed" for name, version in installed.items()
          if version is None and name != "triton"),
        *([] if pipeline["problem"] is None else [pipeline["problem"]]),
        *([] if encoder else ["PyAV has no libx264 encoder: reinstall av from PyPI"]),
    ]  # fmt: skip
    return {
        "versions": installed,
        "devices": _devices(),
        "default_device": device,
        "engines": sorted(ENGINES),
        "engine": choice.engine,
        "engine_why": choice.why,
        "pipeline": pipeline,
        "libx264": encoder,
        "missing": missing,
    }


def _version(package: str) -> str | None:
    if package == "torch":
        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    names = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in gpus]
    return [f"cpu, {torch.get_num_threads()} threads", *names]


def _shipped_pipeline() -> dict[str, Any]:
    from vidsparse.pipelines.load import check_folder

    try:
        check_folder(TINY)
        problem = None
    except BadInputError as error:
        problem = str(error)
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    return {"folder": str(TINY), "bytes": size, "problem": problem}


def _has_encoder() -> bool:
    try:
        import av.codec

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):
        return False
    return True


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    pipeline = found["pipeline"]
    return [
        *((name, version or "[dim]not installed") for name, version in found["versions"].items()),
        *(("device", device) for device in found["devices"]),
        ("engine", f"{found['engine']}: {found['engine_why']}"),
        ("engines", ", ".join(found["engines"])),
        ("shipped model", f"{pipeline['folder']}, {pipeline['bytes'] / 1e6:.0f} MB"),
        ("mp4 encoder", "libx264" if found["libx264"] else "[red]missing"),
        ("missing", "; ".join(found["missing"]) or "nothing"),
    ]
