"""How many weights a token of the video passes in the layers of a transformer."""

from __future__ import annotations

import re

from torch import nn

from vidsparse.pipelines.model import Model

_TEXT = re.compile(r"context|add_|added|_add|txt|text|encoder|caption")  # of text in joint layers
_ONCE = re.compile(r"norm|mod|ada|time|embed|scale_shift|gate_msa")  # of a sample, not of a token
_KEYS = re.compile(r"to_k|to_v|add_k|add_v|kv_proj|k_proj|v_proj")  # of text in cross-attention


def linear_work(model: Model, transformer: nn.Module) -> int:
    """Weights of the linear layers that each token passes, in all blocks with self-attention.

    Left out are those that text alone passes (its own stream, keys and values of cross-attention)
    and those that a sample passes once (modulation).

    Args:
        model: Its row.
        transformer: With or without weights.
    """
    return sum(module.weight.numel() for module in _passed(model, transformer))


def widest(model: Model, transformer: nn.Module) -> int:
    """Most numbers of a token that go into or out of one of those linear layers."""
    passed = _passed(model, transformer)
    return max(max(module.weight.shape) for module in passed)


def _passed(model: Model, transformer: nn.Module) -> list[nn.Linear]:
    layers = {id(layer) for layer in model.layers(transformer)}
    paths = {path for path, module in transformer.named_modules() if id(module) in layers}
    blocks = {_block(path) for path in paths}
    attentions = {
        path
        for path, module in transformer.named_modules()
        if path not in paths and _is_attention(module)
    }
    return [
        module
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and _block(path) in blocks
        and not _apart(path.removeprefix(_block(path)), path, attentions)
    ]


def _block(path: str) -> str:
    """The part of a path up to its first number, which is that of a block."""
    found = re.match(r".*?\.\d+(?=\.|$)", path)
    return found[0] if found else path


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "to_q") or hasattr(module, "q_proj")


def _apart(inside: str, path: str, cross: set[str]) -> bool:
    """Whether a linear layer is of text alone, or passed once a sample."""
    if _TEXT.search(inside) or _ONCE.search(inside):
        return True
    return bool(_KEYS.search(inside)) and any(path.startswith(f"{each}.") for each in cross)
