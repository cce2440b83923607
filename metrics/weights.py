"""Networks from files the user has: nothing here ever downloads anything.

Each field of :class:`Weights` is a path, and each error says which file or folder belongs there.
Files are read without running any code in them (``torch.load(weights_only=True)``), and when a
name ends in part of its own hash, as torchvision's do (``alexnet-owt-7be5be79.pth``), the hash is
checked.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidsparse.errors import BadInputError

# What each field of Weights must point to; said in errors and by `vidsparse compare --help`.
NEEDED = {
    "lpips_alex": "torchvision's AlexNet (alexnet-owt-7be5be79.pth)",
    "lpips_vgg": "torchvision's VGG16 (vgg16-397923af.pth)",
    "dino": "DINO ViT-B/16 (dino_vitbase16_pretrain.pth, or the folder facebook/dino-vitb16)",
    "clip_b32": "CLIP ViT-B/32 (the folder openai/clip-vit-base-patch32)",
    "clip_l14": "CLIP ViT-L/14 (the folder openai/clip-vit-large-patch14)",
    "aesthetic_head": "LAION's linear head (sa_0_4_vit_l_14_linear.pth)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Local paths of the networks that some metrics need; what is None is not measured.

    Attributes:
        lpips_alex: Backbone of LPIPS (AlexNet), for ``lpips_alex``.
        lpips_vgg: Backbone of LPIPS (VGG16), for ``lpips_vgg``.
        dino: For ``vbench/subject_consistency``.
        clip_b32: For ``vbench/background_consistency``.
        clip_l14: With ``aesthetic_head``, for ``vbench/aesthetic_quality``.
        aesthetic_head: With ``clip_l14``, for ``vbench/aesthetic_quality``.

    Raises:
        BadInputError: When a path does not exist, or one of the last two is missing.
    """

    lpips_alex: Path | None = None
    lpips_vgg: Path | None = None
    dino: Path | None = None
    clip_b32: Path | None = None
    clip_l14: Path | None = None
    aesthetic_head: Path | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            path = getattr(self, field.name)
            if path is not None and not path.exists():
                raise BadInputError(
                    f"weights {field.name}: there is no {path}: give the local path of "
                    f"{NEEDED[field.name]}, which is never downloaded"
                )
        if (self.clip_l14 is None) != (self.aesthetic_head is None):
            missing = "clip_l14" if self.clip_l14 is None else "aesthetic_head"
            raise BadInputError(
                f"aesthetic quality needs clip_l14 and aesthetic_head, but {missing} is missing: "
                f"give the local path of {NEEDED[missing]}"
            )


def read_state(path: Path, key: str) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth`` or ``.safetensors`` file, or of a transformers folder.

    Args:
        path: The file or folder.
        key: The field of :class:`Weights` it was given for, for errors.

    Raises:
        BadInputError: When it is not such a file, is damaged, or is not what its name says.
    """
    file = _state_file(path, key)
    _check_hash(file, key)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        raise BadInputError(
            f"weights {key}: {file} cannot be read ({_first_line(error)}): {_wanted(key)}"
        ) from error
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise BadInputError(f"weights {key}: {file} holds no state dict of tensors: {_wanted(key)}")
    return state


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path, key: str) -> None:
    """Load a state dict that must fit to the last tensor, and freeze the network.

    Raises:
        BadInputError: When it does not fit.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(path, key, " ".join(str(error).split())[:200]) from error
    network.eval().requires_grad_(requires_grad=False)


def misfit(path: Path, key: str, why: str) -> BadInputError:
    """Return the error for a file that is readable, but not the network that is needed."""
    return BadInputError(f"weights {key}: {path} does not fit ({why}): {_wanted(key)}")


def _state_file(path: Path, key: str) -> Path:
    if path.is_file():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise BadInputError(
        f"weights {key}: {path} is no file, nor a folder with model.safetensors: {_wanted(key)}"
    )


def _check_hash(file: Path, key: str) -> None:
    named = re.search(r"-([0-9a-f]{8})$", file.stem)
    if named is None:
        return
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(named[1]):
        raise BadInputError(
            f"weights {key}: {file} is damaged, its SHA-256 begins with {digest[:8]}: fetch it "
            "again, or rename a file that is meant to differ"
        )


def _wanted(key: str) -> str:
    return f"give the local path of {NEEDED[key]}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
