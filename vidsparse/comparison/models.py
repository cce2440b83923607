"""Where a pipeline comes from: loaded when it is needed, or in memory already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vidsparse.comparison.fingerprint import of_files
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.checkpoints import (
    Checkpoint,
    checkpoint_of,
    find_source,
    named,
)
from vidsparse.pipelines.running.stack import Stack, is_compiled, lora_files

SAMPLES = 64  # numbers of each tensor that tell one set of weights from another


class Model(Protocol):
    """A source of a pipeline."""

    def load(self) -> Any:
        """The pipeline, ready to run."""
        ...

    def weights(self) -> Any:
        """What changes when the weights do, as plain values; None where nobody can say."""
        ...

    @property
    def stack(self) -> Stack:
        """What diffusers does to it, as far as we asked for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A pipeline in a folder or on the hub.

    Attributes:
        source: Folder or hub id.
        device: Where to load it to.
        dtype: Of its weights.
        trust_remote_code: Whether to run Python code that comes with it.
        allow_pickle: Whether to read pickle files.
        stack: What diffusers does to it as it is loaded.
    """

    source: str | Path
    device: str
    dtype: str
    trust_remote_code: bool = False
    allow_pickle: bool = False
    stack: Stack = field(default_factory=Stack)

    def load(self) -> Any:
        """Load it."""
        from vidsparse.pipelines.running.load import load_pipeline

        return load_pipeline(
            self.source,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            stack=self.stack,
        )

    def weights(self) -> Any:
        """Name, size and time of change of its files, of a LoRA's too; None of it on the hub."""
        lora = of_files(lora_files(self.stack.lora)) if self.stack.lora else []
        if not isinstance(self.source, Path):
            return lora or None
        return [*of_files(self.source.rglob("*.safetensors")), *lora]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A pipeline in memory, whoever made it and changed it.

    Attributes:
        pipe: It.
    """

    pipe: Any

    @property
    def stack(self) -> Stack:
        """Whether it is compiled, which its times depend on; all else was done by others."""
        return Stack(compile=is_compiled(self.pipe))

    def load(self) -> Any:
        """It, as it is."""
        return self.pipe

    def weights(self) -> str:
        """Condense its configs and some numbers of every tensor, adapters and their scale too."""
        total = hashlib.sha256()
        for part in _facts(self.pipe):
            total.update(part.encode())
        return total.hexdigest()[:32]

    def checkpoint(self) -> Checkpoint:
        """What is known of it, with the settings that are recommended where its name is known.

        Raises:
            BadInputError: When it is none that vidsparse knows.
        """
        source = _source_of(self.pipe)
        found = checkpoint_of(self.pipe, source)
        row = named(source)
        return found if row is None else replace(row, release=found.release)


def _source_of(pipe: Any) -> str | Path:
    """Where a pipeline says that it was loaded from; the name of its class where that is gone."""
    named = getattr(pipe, "name_or_path", None)
    try:
        return find_source(named) if named else type(pipe).__name__
    except BadInputError:
        return type(pipe).__name__


def _facts(pipe: Any) -> Iterator[str]:
    for name, component in pipe.components.items():
        yield f"{name} {type(component).__name__} {_config(component)}\n"
        if isinstance(component, nn.Module):
            for key, tensor in component.state_dict().items():
                yield from _tensor_facts(key, tensor)
            for key, module in component.named_modules():
                if isinstance(scaling := getattr(module, "scaling", None), dict):  # of peft
                    active = getattr(module, "active_adapters", None)
                    yield f"{key} {scaling} {active} {getattr(module, 'disable_adapters', None)}\n"


def _config(component: Any) -> str:
    """The config of a component, in one order, without what the library keeps for itself."""
    config = getattr(component, "config", None)
    if config is None:
        return ""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    public = {key: value for key, value in values.items() if not key.startswith("_")}
    return json.dumps(public, sort_keys=True, default=str)


def _tensor_facts(name: str, tensor: Any) -> Iterator[str]:
    """Shape, dtype and a few numbers, evenly spread; of each part where it is quantised."""
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _tensor_facts(f"{name}.{part}", getattr(tensor, part))
    elif isinstance(tensor, torch.Tensor):
        flat = tensor.detach().flatten()
        count = 0 if tensor.is_meta else min(len(flat), SAMPLES)
        at = torch.linspace(0, len(flat) - 1, count, dtype=torch.float64).long()
        numbers = flat[at.to(flat.device)].double().tolist() if count else []
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype} {numbers}\n"
