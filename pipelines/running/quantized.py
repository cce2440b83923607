"""Linear layers of transformers in eight bits, by torchao through diffusers' own config."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.empty import explained

Quantize = Literal["fp8", "int8", "int8-dynamic"]
"""fp8: weights and activations in FP8; int8: weights alone; int8-dynamic: activations too."""

SAID = {"fp8": "fp8 weights", "int8": "int8 weights", "int8-dynamic": "int8 weights, activations"}
FP8_SINCE = (8, 9)  # compute capability
LEAST = 1e-6  # that the largest activation of a token is taken for
ALIGNED, SCALE = 16, 4  # torchao leaves other sides in 16 bits; bytes of a scale


def check_quantize(quantize: str, device: str, dtype: str) -> None:
    """Make sure that weights can be in these bits here.

    Args:
        quantize: A word of ``Quantize``.
        device: To run on.
        dtype: Of the weights.

    Raises:
        BadInputError: Naming the word, the package, the GPU or the dtype that does not fit.
    """
    check_word(quantize)
    if importlib.util.find_spec("torchao") is None:
        raise BadInputError("--quantize needs torchao: pip install torchao")
    if quantize == "fp8":
        _check_fp8(device, dtype)


def check_word(quantize: str) -> None:
    """Raise BadInputError for what is no word of ``Quantize``."""
    if quantize not in get_args(Quantize):
        words = ", ".join(get_args(Quantize))
        raise BadInputError(f"unknown --quantize {quantize!r}: choose {words}")


def _check_fp8(device: str, dtype: str) -> None:
    if not device.startswith("cuda"):
        raise BadInputError("--quantize fp8 needs an NVIDIA GPU: take int8 here")
    if torch.cuda.get_device_capability(device) < FP8_SINCE:
        raise BadInputError(
            f"--quantize fp8 needs compute capability 8.9, and {device} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}: take int8"
        )
    if dtype != "bfloat16":
        raise BadInputError(f"--quantize fp8 needs --dtype bfloat16, got {dtype}")


def diffusers_config(quantize: Quantize) -> Any:
    """What diffusers is given to quantise a transformer as it loads it."""
    from diffusers.quantizers.quantization_config import TorchAoConfig
    from torchao import quantization

    match quantize:
        case "int8":
            return TorchAoConfig(quantization.Int8WeightOnlyConfig())
        case "int8-dynamic":
            return TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    # without a bound a row of zeros, as padded text is, has a scale of zero and no number comes out
    by_row = quantization.Float8DynamicActivationFloat8WeightConfig(
        granularity=quantization.PerRow(), activation_value_lb=LEAST
    )
    return TorchAoConfig(by_row)


def quantize_in_place(transformer: nn.Module, quantize: Quantize) -> int:
    """Quantise a transformer that was not loaded, as diffusers would have: for good.

    Args:
        transformer: Of diffusers, with weights.
        quantize: In what.

    Returns:
        How many linear layers it is that diffusers would quantise.

    Raises:
        BadInputError: When torchao or its release cannot do it here.
    """
    layers = quantized_layers(transformer)
    taken = {id(layer) for layer in layers}
    with explained(f"torchao cannot quantise a {type(transformer).__name__} to {quantize}"):
        from torchao.quantization import quantize_

        chosen = diffusers_config(quantize).get_apply_tensor_subclass()
        quantize_(transformer, chosen, filter_fn=lambda module, _: id(module) in taken)
    return len(layers)


def quantized_layers(transformer: nn.Module) -> list[nn.Linear]:
    """Linear layers that diffusers quantises: all but those that it keeps in float32."""
    kept = [f"{name}." for name in getattr(transformer, "_keep_in_fp32_modules", None) or ()]
    return [
        module
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not any(each in f"{path}." for each in kept)
    ]


def saved_by_fp8(transformer: nn.Module) -> int:
    """Bytes that the weights take less in FP8, with a scale a row, than in 16 bits.

    Args:
        transformer: Of diffusers, with or without weights.
    """
    shapes = [layer.weight.shape for layer in quantized_layers(transformer)]
    return sum(
        rows * (columns - SCALE)
        for rows, columns in shapes
        if rows % ALIGNED == 0 and columns % ALIGNED == 0
    )
