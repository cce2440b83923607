"""The tensors that a folder's weight files hold, compared with those that its models need.

Only headers are read. What a file names in another way than the model, what is tied to another
tensor and what a library leaves out on purpose is the library's to know, so it is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.configs import read_index, read_json, read_weight_map
from vidsparse.pipelines.running.empty import MOST_MODULES, at_most, empty_component, explained
from vidsparse.pipelines.running.offline import import_diffusers, without_network

Shape = tuple[int, ...]


def check_tensors(folder: Path) -> None:
    """Make sure that every component's weight files hold each of its tensors, in its shape.

    Not looked at: quantized components, pickles, and classes of neither diffusers nor transformers.

    Raises:
        BadInputError: Naming the first tensor that is missing or of another shape.
    """
    import_diffusers()
    import diffusers
    import transformers
    from diffusers.models.modeling_utils import ModelMixin

    for name, (library, kind) in read_index(folder).components().items():
        own = getattr(diffusers.pipelines, library, None)
        source = {"diffusers": diffusers, "transformers": transformers}.get(library, own)
        found = getattr(source, kind, None)
        if not isinstance(found, type) or _is_quantized(folder / name):
            continue
        with without_network():
            if issubclass(found, ModelMixin):
                _check_diffusers(folder / name, found)
            elif issubclass(found, transformers.PreTrainedModel):
                _check_transformers(folder / name, found)


def header(path: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors of a safetensors file.

    Raises:
        BadInputError: When it is cut off, or is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        size = path.stat().st_size
        raise BadInputError(
            f"{path} is cut off or is not a safetensors file ({size:,} bytes): download it again "
            "(with git, run git lfs pull)"
        ) from error


def _is_quantized(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and bool(read_json(config).get("quantization_config"))


def _check_diffusers(folder: Path, kind: Any) -> None:
    from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME as NAME

    index, single = folder / f"{NAME}.index.json", folder / NAME
    if index.is_file():
        held: dict[str, Shape] = {}
        for name in sorted(set(read_weight_map(index).values())):
            held |= header(folder / name)
    elif single.is_file():
        held = header(single)
    else:
        return
    model = empty_component(folder, kind)
    stored: dict[str, Any] = {
        name: torch.empty(shape, device="meta") for name, shape in held.items()
    }
    if not index.is_file():  # as diffusers does, which gives old names their new ones
        model._fix_state_dict_keys_on_load(stored)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse_missing(folder, kind, needed.keys() - stored.keys(), len(needed))
    for name, shape in needed.items():
        if tuple(stored[name].shape) != shape:
            raise _misshapen(folder, kind, name, tuple(stored[name].shape), shape)


def _check_transformers(folder: Path, kind: Any) -> None:
    if not any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return
    what = f"transformers cannot load {kind.__name__} from {folder}"
    with explained(what), _silent(), at_most(MOST_MODULES):
        model, report = kind.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
        )
    _refuse_missing(folder, kind, report["missing_keys"], len(model.state_dict()))
    for name, held, wanted in sorted(report["mismatched_keys"]):
        raise _misshapen(folder, kind, name, tuple(held), tuple(wanted))


def _refuse_missing(folder: Path, kind: Any, missing: Iterable[str], number: int) -> None:
    names = sorted(missing)
    if names:
        raise BadInputError(
            f"the weights of {folder} lack {len(names)} of the {number} tensors of "
            f"{kind.__name__}, the first is {names[0]}: download the model again"
        )


def _misshapen(folder: Path, kind: Any, name: str, held: Shape, wanted: Shape) -> BadInputError:
    return BadInputError(
        f"the weights of {folder} hold {name} in the shape {held}, but {kind.__name__} of its "
        f"config.json needs {wanted}: download the model again"
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What transformers says of a load that is only a check, it will say again."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(50)  # critical
    try:
        yield
    finally:
        logging.set_verbosity(before)
