"""Loading a diffusers pipeline: checked first, safetensors only, no code of others unless asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vidsparse.errors import BadInputError, VidsparseError, shorten
from vidsparse.pipelines.running.checkpoints import TINY, find_source
from vidsparse.pipelines.running.configs import (
    check_regular,
    read_config,
    read_index,
    read_json,
    read_weight_map,
)
from vidsparse.pipelines.running.offline import import_diffusers, without_network
from vidsparse.pipelines.running.stack import Stack
from vidsparse.pipelines.running.stored import check_tensors, header

__all__ = ["TINY", "Dtype", "check_folder", "load_pipeline", "resolve_device", "resolve_dtype"]

Dtype = Literal["float32", "bfloat16", "float16"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_pipeline(
    source: str | Path = TINY,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    stack: Stack | None = None,
) -> Any:
    """Load a diffusers pipeline from a folder, a hub id, or a name in ``CHECKPOINTS``.

    Args:
        source: Where from.
        device: "cpu", "cuda", "cuda:1"; "auto" takes CUDA where there is a GPU.
        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, else bfloat16.
        trust_remote_code: Run Python code that comes with the model.
        allow_pickle: Also read pickle files (.bin, .pt), which can run any code.
        stack: What diffusers does to it: eight-bit weights, offload, a cache and the like.

    Raises:
        BadInputError: When the model is missing or incomplete, to the last tensor, there is no
            such device, or the model cannot have what the stack asks for.
        VidsparseError: When diffusers cannot load it, or the GPU has no room for it.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    stack = stack or Stack()
    stack.check(device, dtype)
    found = find_source(source)
    safe = None if allow_pickle else True
    folder = found if isinstance(found, Path) else _fetch(found, safe, trust_remote_code)
    check_folder(folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    stack.check_folder(folder)
    import_diffusers()
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        with _no_loading_bars(), without_network():
            check_tensors(folder)
            pipe = DiffusionPipeline.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=safe,
                trust_remote_code=trust_remote_code,
                **stack.loading(folder),
            )
    except BadInputError:
        raise
    except Exception as error:  # a library that is given anything raises anything
        raise _explain(found, error) from error
    try:
        with without_network():
            stack.set_up(pipe, device)
    except torch.OutOfMemoryError as error:
        raise VidsparseError(
            f"the GPU ran out of memory as the weights of {found} were brought to {device}: let "
            "them wait in the CPU's memory (--offload model, group or sequential), keep them in "
            "eight bits (--quantize int8), or take a larger GPU"
        ) from error
    return pipe


def _fetch(hub_id: str, safe: bool | None, trust_remote_code: bool) -> Path:
    """Fetch what a hub id has, or find it where it was kept."""
    import_diffusers()
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return Path(
            DiffusionPipeline.download(
                hub_id, use_safetensors=safe, trust_remote_code=trust_remote_code
            )
        )
    except Exception as error:
        raise _explain(hub_id, error) from error


def resolve_device(device: str) -> str:
    """Turn "auto" into a device, and make sure that the device is there.

    Raises:
        BadInputError: When it is not.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise BadInputError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise BadInputError(
            f"{device} was asked for but torch sees no GPU (torch {torch.__version__}): "
            "use --device cpu or install a CUDA build of torch"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise BadInputError(
            f"{device} was asked for but there are {torch.cuda.device_count()} GPUs: "
            f"use cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    return device


def resolve_dtype(dtype: str | None, device: str) -> Dtype:
    """Make sure that the dtype is one; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        BadInputError: For an unknown one.
    """
    for known in get_args(Dtype):
        if known == (dtype or ("float32" if device.startswith("cpu") else "bfloat16")):
            return known
    raise BadInputError(f"unknown dtype {dtype!r}: choose {', '.join(get_args(Dtype))}")


def check_folder(
    folder: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> None:
    """Make sure, before anything is loaded, that a pipeline's folder is whole and safe.

    Raises:
        BadInputError: Naming the first thing that is wrong, and what to do.
    """
    components = read_index(folder).components()
    if not trust_remote_code and any(folder.glob("*.py")):
        script = next(folder.glob("*.py"))
        raise BadInputError(
            f"{folder} comes with Python code of its own ({script.name}): read it, then pass "
            "--trust-remote-code (trust_remote_code=True)"
        )
    for name, (_, kind) in components.items():
        _check_component(folder / name, kind, allow_pickle)


def _check_component(folder: Path, kind: str, allow_pickle: bool) -> None:
    if not folder.is_dir():
        raise BadInputError(
            f"the model folder is incomplete, {folder} ({kind}) is missing: download the model "
            "again"
        )
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            check_regular(path)
    for config in sorted(folder.glob("*config.json")):
        read_json(config)
    if "Scheduler" in kind:
        read_config(folder / "scheduler_config.json", "scheduler")
    elif (folder / "guider_config.json").is_file():
        pass  # HunyuanVideo-1.5: how it guides, without weights
    elif not any(word in kind for word in ("Tokenizer", "Processor", "Extractor")):
        read_json(folder / "config.json")
        _check_weights(folder, allow_pickle)


def _check_weights(folder: Path, allow_pickle: bool) -> None:
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(read_weight_map(index).values())
        if missing := sorted(name for name in shards if not (folder / name).is_file()):
            raise BadInputError(
                f"{folder} lacks {len(missing)} of its {len(shards)} weight files, the first is "
                f"{missing[0]}: download the model again"
            )
    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if not weights and not pickles:
        raise BadInputError(f"{folder} holds no weights (*.safetensors): download the model again")
    if not weights and not allow_pickle:
        raise BadInputError(
            f"{folder} holds pickle files only ({pickles[0]}), which can run any code and are "
            "refused: get safetensors files, or pass --allow-pickle (allow_pickle=True) if you "
            "trust them"
        )
    for path in weights:
        header(path)


@contextlib.contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Bars of a few seconds' loading are noise; bars of a download stay."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    shown = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _explain(source: str | Path, error: Exception) -> VidsparseError:
    reason = shorten(" ".join(str(error).split()), 600) or type(error).__name__
    if isinstance(source, Path):
        return VidsparseError(f"diffusers could not load {source}: {reason}")
    if isinstance(error, OSError) and "`safetensors` weights" in reason:
        return BadInputError(
            f"the model {source} lacks safetensors weights for a part of it, and pickle files, "
            "which can run any code, are refused: pass --allow-pickle (allow_pickle=True) if you "
            "trust them, or give a local folder"
        )
    if isinstance(error, OSError):
        return BadInputError(
            f"the model {source} is not on this machine and could not be had from the hub: check "
            "its name and the network, give a local folder, or log in with `hf auth login` if it "
            "is gated"
        )
    return VidsparseError(f"diffusers could not load {source} from the hub: {reason}")
