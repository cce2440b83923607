"""What all stages share: the time they may take, their log, the files that travel."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "tiny"
FILE_LIMIT = 15 * 10**6  # bytes; a larger set of weights travels in several files


class Clock:
    """A stage's time, from the start of the process or of the stage before it.

    Args:
        minutes: All it may take, compiling and saving included.
        reserve: Seconds kept for what comes after the training loop.
        steps: Stop after so many steps instead: for tests, where time says nothing.
        start: ``time.monotonic()`` when it began.
    """

    def __init__(
        self, minutes: float, reserve: float, *, steps: int | None = None, start: float
    ) -> None:
        self.start, self.steps = start, steps
        self.end = start + 60 * minutes - (0 if steps else reserve)
        self.began = time.monotonic()

    def begin(self) -> None:
        """Training begins: what went before, pools and compiling, is not in its share."""
        self.began = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def share(self, step: int) -> float:
        """Return how much of the training is over; it ends at 1."""
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - self.began) / max(self.end - self.began, 1e-6)


class Log:
    """A line of the table every few seconds, and all of them as JSON.

    Args:
        clock: The stage's clock.
        every: Seconds between lines.
    """

    def __init__(self, clock: Clock, every: float = 30) -> None:
        self.clock, self.every = clock, every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._last, self._step = time.monotonic(), 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one step's values, on whatever device: nothing waits for them."""
        for name, value in values.items():
            before = self._sums.get(name)
            self._sums[name] = value.detach() if before is None else before + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def line(self, step: int, *, share: float, now: bool = False) -> None:
        """Print the means since the last line, when it is time to or ``now``.

        Raises:
            FloatingPointError: When one of them is not finite.
        """
        if not self._sums or (time.monotonic() - self._last < self.every and not now):
            return
        means = {name: (s / self._counts[name]).item() for name, s in self._sums.items()}
        pace = 1000 * (time.monotonic() - self._last) / max(step - self._step, 1)
        row = {"seconds": round(self.clock.elapsed(), 1), "step": step, "share": round(share, 3)}
        row |= {name: round(value, 5) for name, value in means.items()}
        say(" ".join(f"{k} {v:g}" for k, v in row.items()), f"{pace:.0f} ms/step")
        self.rows.append(row)
        self._sums, self._counts = {}, {}
        self._last, self._step = time.monotonic(), step
        if not all(np.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"At step {step} the loss is not finite: {means}.")


def say(*words: object) -> None:
    """Print at once, also into a pipe."""
    print(*words, flush=True)


def choose_device() -> str:
    """Return "cuda" where there is a GPU, set up for speed, else "cpu"."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # each size and each number of channels is one
    return "cuda"


def mixed(device: str) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def wait(device: str) -> None:
    """Wait for the GPU, so that a clock tells the truth."""
    if device == "cuda":
        torch.cuda.synchronize()


def save_weights(folder: Path, name: str, weights: Mapping[str, Tensor], **metadata: str) -> None:
    """Write float16 ``name.safetensors``, or ``name-0``, ``name-1`` ... of at most FILE_LIMIT."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}*.safetensors"):
        old.unlink()
    parts: list[dict[str, Tensor]] = [{}]
    room = FILE_LIMIT
    for key, value in weights.items():
        half = value.detach().to("cpu", torch.float16).contiguous().clone()
        if half.nbytes > room:
            parts.append({})
            room = FILE_LIMIT
        parts[-1][key] = half
        room -= half.nbytes
    for i, part in enumerate(parts):
        suffix = f"-{i}" if len(parts) > 1 else ""
        save_file(part, folder / f"{name}{suffix}.safetensors", metadata=metadata or None)


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Return what ``save_weights`` wrote, in float32; empty where there is none."""
    weights: dict[str, Tensor] = {}
    whole = folder / f"{name}.safetensors"
    for file in [whole] if whole.exists() else sorted(folder.glob(f"{name}-*.safetensors")):
        weights |= {key: value.float() for key, value in load_file(file).items()}
    return weights


def save_curves(folder: Path, stage: str, **values: Any) -> None:
    """Add one entry to the stage's list in ``curves.json``."""
    file = folder / "curves.json"
    curves = json.loads(file.read_text()) if file.exists() else {}
    curves.setdefault(stage, []).append(values)
    file.write_text(json.dumps(curves))


def overlay(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights for some of a module's parameters.

    Raises:
        KeyError: When a name is none of the module's.
    """
    unknown = module.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise KeyError(f"{type(module).__name__} has no weights named {unknown[:3]}.")


def load_vae(folder: Path | None, device: str) -> Any:
    """Return the shipped VAE in float32, with the checkpoint's decoder where there is one."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    vae: Any = AutoencoderKLWan.from_pretrained(PIPELINE / "vae", torch_dtype=torch.float32)
    if folder and (decoder := load_weights(folder, "decoder")):
        overlay(vae, decoder)
    return vae.to(device).eval().requires_grad_(False)


def to_uint8(clips: Tensor) -> Tensor:
    """Return [-1, 1] as uint8."""
    return ((clips.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def write_sheet(file: Path, clips: Tensor, columns: int = 6) -> None:
    """Write a picture of a row for each uint8 clip ``(clips, 3, frames, height, width)``."""
    frames = clips.shape[2]
    at = np.linspace(0, frames - 1, min(columns, frames)).round().astype(int)
    rows = clips[:, :, at].permute(0, 3, 2, 4, 1)  # clips, height, frames, width, 3
    picture = rows.flatten(2, 3).flatten(0, 1).cpu().numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)
