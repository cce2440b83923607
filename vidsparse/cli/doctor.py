"""``vidsparse doctor``: what is installed, what will be used, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from vidsparse.cli.options import Json
from vidsparse.cli.screen import answer, answer_json, complain, plain_table
from vidsparse.errors import BadInputError
from vidsparse.versions import OPTIONAL, versions

if TYPE_CHECKING:
    from vidsparse.kernels.engines.case import Case


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


def examine() -> dict[str, Any]:
    """Collect every fact."""
    from vidsparse.kernels.engines.table import ENGINES, choose_engine
    from vidsparse.pipelines.running.load import resolve_device
    from vidsparse.policies.block_size import describe_usual_block

    conflict = _conflict()  # which is no longer seen once xformers was imported
    device, installed = resolve_device("auto"), versions()
    case = _typical_case(device)
    choice = choose_engine(case)
    refusals = {name: engine.unsupported(case) for name, engine in ENGINES.items()}
    pipeline, encoder = _shipped_pipeline(), _has_encoder()
    missing = [
        *(f"{name} is not installed" for name, version in installed.items()
          if version is None and name not in ("triton", *OPTIONAL)),
        *([] if pipeline["problem"] is None else [pipeline["problem"]]),
        *([] if encoder else ["PyAV has no libx264 encoder: reinstall av from PyPI"]),
    ]  # fmt: skip
    return {
        "versions": installed,
        "devices": _devices(),
        "default_device": device,
        "engines": dict(sorted(refusals.items())),
        "engine": choice.engine,
        "engine_why": choice.why,
        "block": describe_usual_block(case.device_type),
        "pipeline": pipeline,
        "libx264": encoder,
        "missing": missing,
        "conflict": conflict,
    }


def _typical_case(device: str) -> Case:
    """A video model's self-attention on this machine: what the choice of an engine is shown for."""
    import torch

    from vidsparse.kernels.engines.case import Case

    kind = device.partition(":")[0]
    arch = torch.cuda.get_device_capability(device) if kind == "cuda" else None
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    return Case(device_type=kind, arch=arch, dtype=dtype)


def _devices() -> list[str]:
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    names = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in gpus]
    return [f"cpu, {torch.get_num_threads()} threads", *names]


def _shipped_pipeline() -> dict[str, Any]:
    from vidsparse.pipelines.running.checkpoints import TINY
    from vidsparse.pipelines.running.load import check_folder

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


def _conflict() -> str | None:
    """What is installed and does not go together."""
    from vidsparse.kernels.engines.xformers import clashes_with_flash_4

    if not clashes_with_flash_4():
        return None
    return (
        "diffusers cannot be imported beside xformers and flash-attn-4, unless vidsparse loads the "
        "pipeline: pip uninstall xformers (or flash-attn-4)"
    )


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    pipeline = found["pipeline"]
    return [
        *((name, version or "[dim]not installed") for name, version in found["versions"].items()),
        *(("device", device) for device in found["devices"]),
        ("engine", f"{found['engine']}: {found['engine_why']}"),
        *(
            (f"  {name}", "[dim]" + escape("; ".join(reasons)) if reasons else "can run here")
            for name, reasons in found["engines"].items()
        ),
        ("block", found["block"]),
        ("shipped model", f"{pipeline['folder']}, {pipeline['bytes'] / 1e6:.0f} MB"),
        ("mp4 encoder", "libx264" if found["libx264"] else "[red]missing"),
        *([("conflict", found["conflict"])] if found["conflict"] else []),
        ("missing", "; ".join(found["missing"]) or "nothing"),
    ]
