"""GPUs by what their makers say of them, for the time of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidsparse.errors import BadInputError
from vidsparse.parameters import suggest

if TYPE_CHECKING:
    import torch

MEASURED = "h200"
PEAK, PEAK_FP8, BANDWIDTH = 989.0, 1979.0, 4.8  # of an H200: TFLOP/s in bf16 and FP8, TB/s


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, by what its maker says of it.

    Attributes:
        label: Its name.
        arch: Its compute capability.
        peak: TFLOP/s of dense bf16 products that are summed in float32.
        bandwidth: TB/s of its memory.
        fp8: TFLOP/s of dense FP8 products that are summed in float32; None without such cores.
    """

    label: str
    arch: tuple[int, int]
    peak: float
    bandwidth: float
    fp8: float | None = None


GPUS: Mapping[str, Gpu] = {
    "h200": Gpu("NVIDIA H200", (9, 0), PEAK, BANDWIDTH, PEAK_FP8),
    "h100": Gpu("NVIDIA H100 SXM", (9, 0), PEAK, 3.35, PEAK_FP8),
    "b200": Gpu("NVIDIA B200", (10, 0), 2250.0, 8.0, 4500.0),
    "a100": Gpu("NVIDIA A100 80 GB", (8, 0), 312.0, 2.04),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 362.0, 0.864, 733.0),
    "rtx5090": Gpu("NVIDIA RTX 5090", (12, 0), 209.5, 1.79, 419.0),
    "rtx4090": Gpu("NVIDIA RTX 4090", (8, 9), 165.2, 1.01, 330.3),
    "rtx3090": Gpu("NVIDIA RTX 3090", (8, 6), 71.0, 0.936),
}


def name_of(device: torch.device) -> str:
    """What its driver calls a GPU; empty of what is none."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def gpu_called(name: str) -> Gpu | None:
    """The GPU that a driver calls by this name; None where it is not in the table.

    Example:
        >>> gpu_called("NVIDIA GeForce RTX 4090").label, gpu_called("NVIDIA H100 80GB HBM3").label
        ('NVIDIA RTX 4090', 'NVIDIA H100 SXM')
        >>> gpu_called("NVIDIA H20"), gpu_called("NVIDIA GeForce RTX 4090 Laptop GPU")
        (None, None)
    """
    words = re.sub(r"RTX (?=[0-9])", "RTX", name.replace("-", " ")).lower().split()
    if "laptop" in words:
        return None
    return next((gpu for key, gpu in GPUS.items() if {key, f"g{key}"} & set(words)), None)


def find_gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        BadInputError: With the near matches, when it is not in the table.
    """
    if name.lower() not in GPUS:
        raise BadInputError(f"unknown GPU {name!r}: {suggest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
