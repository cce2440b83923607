"""Linear layers of a transformer in eight bits, by torchao."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.empty import explained

TILE = 16  # what eight-bit tensor cores multiply: both sides of a weight are multiples of it


class Quantize(StrEnum):
    """What weights and activations of linear layers are in.

    Attributes:
        FP8: Both in FP8.
        INT8: Both in INT8.
    """

    FP8 = "fp8"
    INT8 = "int8"


def check_torchao() -> None:
    """Raise BadInputError where torchao is not installed."""
    if find_spec("torchao") is None:
        raise BadInputError("--quantize needs torchao, which is not installed: pip install torchao")


def quantize_blocks(transformer: Any, lists: Iterable[str], kind: Quantize) -> int:
    """Quantize the linear layers of a transformer's blocks, in place and for good.

    As in diffusers, what it keeps in float32 stays as it is.

    Args:
        transformer: With weights.
        lists: Names of its lists of blocks.
        kind: In what.

    Returns:
        How many linear layers there are in eight bits now.

    Raises:
        BadInputError: When torchao or its release cannot do it here.
    """
    check_torchao()
    with explained(f"torchao cannot quantize a {type(transformer).__name__} to {kind.value}"):
        from diffusers.quantizers.quantization_config import TorchAoConfig
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            quantize_,
        )

        configs = {
            Quantize.FP8: Float8DynamicActivationFloat8WeightConfig,
            Quantize.INT8: Int8DynamicActivationInt8WeightConfig,
        }
        chosen = TorchAoConfig(configs[kind]()).get_apply_tensor_subclass()
        kept = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
        count = 0

        def takes(module: nn.Module, path: str) -> bool:
            nonlocal count
            if not isinstance(module, nn.Linear) or kept & set(path.split(".")):
                return False
            fits = not module.in_features % TILE and not module.out_features % TILE
            count += fits
            return fits

        for name in lists:
            quantize_(transformer.get_submodule(name), chosen, filter_fn=takes)
    return count
