"""Stage 6: a checkpoint as a folder that ``WanPipeline.from_pretrained`` loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .common import PIPELINE, load_weights, say

LIMIT = 24 * 10**6  # bytes of the whole folder
_VAE = Path("vae", "diffusion_pytorch_model.safetensors")
_DIT = Path("transformer", "diffusion_pytorch_model.safetensors")
_TEXT = Path("text_encoder", "model.safetensors")


def export(folder: Path, out: Path) -> None:
    """Write the shipped pipeline with the checkpoint's weights, in float16, and its judge.

    Args:
        folder: A checkpoint with at least one of: average, decoder, judge.
        out: A folder; the shipped one may be replaced in place.

    Raises:
        ValueError: When the checkpoint has nothing to export, or the result is over ``LIMIT``.
    """
    if out.resolve() != PIPELINE:
        shutil.copytree(PIPELINE, out, dirs_exist_ok=True)
    average = load_weights(folder, "average")
    replaced = {
        _VAE: load_weights(folder, "decoder"),
        _DIT: {k[4:]: v for k, v in average.items() if k.startswith("dit.")},
        _TEXT: {k[8:]: v for k, v in average.items() if k.startswith("encoder.")},
    }
    judge = folder / "judge.safetensors"
    if not any(replaced.values()) and not judge.exists():
        raise ValueError(f"{folder} holds no trained weights: train a stage first.")
    for file, weights in replaced.items():
        if weights:
            _replace(out / file, weights)
    if judge.exists():
        shutil.copyfile(judge, out / judge.name)
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if total > LIMIT:
        raise ValueError(f"The pipeline has {total} bytes, more than {LIMIT}.")
    say(f"{out}: {total / 1e6:.2f} MB")


def _replace(file: Path, weights: dict[str, Tensor]) -> None:
    """Overwrite tensors by name, keeping the others and the metadata."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        old = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    unknown = weights.keys() - old.keys()
    if unknown:
        raise ValueError(f"{file} has no tensor named {min(unknown)}.")
    new = {key: value.to(torch.float16).contiguous() for key, value in (old | weights).items()}
    save_file(new, file, metadata=metadata)
