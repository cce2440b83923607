"""What diffusers itself does to a pipeline beside sparse attention, in the order that works.

Weights are quantised as they load; then come a LoRA, tiles, a cache, the place of the weights, and
the compiler, which has to see all that went before. Beside a cache, or where weights come block by
block, the compiler comes first: it makes code of what a block does, and hooks decide outside of it
whether a block does it, and bring its weights.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines import compiled
from vidsparse.pipelines.running import compiling
from vidsparse.pipelines.running.caches import MAG, Cache
from vidsparse.pipelines.running.configs import read_config, read_index, read_json
from vidsparse.pipelines.running.quantized import (
    SAID,
    Quantize,
    check_quantize,
    diffusers_config,
)
from vidsparse.pipelines.running.skeleton import pipeline_class

Offload = Literal["model", "group", "sequential"]
TRANSFORMERS = ("transformer", "transformer_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What is done to a pipeline as it is loaded.

    Attributes:
        compile: Whether ``torch.compile`` makes the blocks of its transformers faster.
        quantize: Eight bits for their weights: "int8" keeps them in 8 bits and computes in the
            model's dtype; "fp8" and "int8-dynamic" compute in 8 bits too.
        cache: That skips calls.
        offload: Where weights wait: "model" moves a component at a time to the GPU, "group" a
            block of a transformer, "sequential" a layer.
        lora: A ``.safetensors`` file, or the folder of one.
        vae_tiling: Whether the VAE decodes in tiles.
        shift: Of the noise levels of a flow scheduler, in place of that of the folder; the higher,
            the more of the steps are noisy ones.
        steps: Of every run, which MagCache has to know.
    """

    compile: bool = False
    quantize: Quantize | None = None
    cache: Cache | None = None
    offload: Offload | None = None
    lora: Path | None = None
    vae_tiling: bool = False
    shift: float | None = None
    steps: int | None = field(default=None, repr=False)  # of a request, which says it itself

    def check(self, device: str, dtype: str) -> None:
        """Make sure that these go together, and that what they need is here.

        Args:
            device: To run on.
            dtype: Of the weights.

        Raises:
            BadInputError: Naming the two that do not, or the package that is missing.
        """
        if self.offload is not None and self.offload not in get_args(Offload):
            raise BadInputError(
                f"unknown --offload {self.offload!r}: choose {', '.join(get_args(Offload))}"
            )
        if self.compile and self.cache is not None:
            self.cache.check_compiled()
        if self.compile and self.offload == "sequential":
            raise BadInputError(
                "--compile and --offload sequential cannot go together: the compiler would stop at "
                "every layer; take --offload group or model"
            )
        if self.quantize is not None:
            check_quantize(self.quantize, device, dtype)
        if self.offload is not None and device.startswith("cpu"):
            raise BadInputError(f"--offload {self.offload} needs a GPU: a CPU's weights are there")
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise BadInputError(f"--shift must be a number above 0, got {self.shift:g}")
        if self.lora is not None:
            _require("peft", "--lora", "peft")
            _lora_file(self.lora)

    def check_folder(self, folder: Path) -> None:
        """Make sure, before weights load, that the pipeline of a folder can have these.

        Raises:
            BadInputError: When it cannot.
        """
        components = read_index(folder).components()
        if self.lora is not None:
            kind = pipeline_class(read_index(folder).pipeline, folder)
            if not hasattr(kind, "load_lora_weights"):
                raise BadInputError(f"--lora: diffusers loads no LoRA into {kind.__name__}")
        if self.shift is not None:
            _shift_key(read_config(folder / "scheduler" / "scheduler_config.json", "scheduler"))
        own = [name for name in TRANSFORMERS if name in components]
        if self.lora is not None and len(own) > 1:
            raise BadInputError(
                f"--lora {self.lora}: this model shares its steps between two transformers, and "
                "diffusers would change the first alone: load it in Python, with load_lora_weights "
                "and for the second with load_into_transformer_2=True, then call "
                "vidsparse.sparsify or vidsparse.compare"
            )
        for stored in (folder / name / "config.json" for name in own):
            if self.quantize is not None and read_json(stored).get("quantization_config"):
                raise BadInputError(
                    f"--quantize {self.quantize}: the weights of {stored.parent} are quantised "
                    "already, leave it out"
                )
        if self.cache is not None:
            self.cache.check([components[name][1] for name in own])
            self.cache.check_pipeline(pipeline_class(read_index(folder).pipeline, folder))

    def loading(self, folder: Path) -> dict[str, Any]:
        """Arguments of ``from_pretrained``: how the transformers' weights are quantised."""
        if self.quantize is None:
            return {}
        from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

        quantize, components = self.quantize, read_index(folder).components()
        own = [name for name in TRANSFORMERS if name in components]
        mapping: Any = {name: diffusers_config(quantize) for name in own}
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)}

    def set_up(self, pipe: Any, device: str) -> None:
        """Do all of it to a pipeline that was just loaded, and bring it to its device.

        Raises:
            BadInputError: When the pipeline cannot have something.
        """
        if self.lora is not None:
            _load_lora(pipe, self.lora)
        if self.vae_tiling:
            _tile(pipe.vae)
        if self.shift is not None:
            config = pipe.scheduler.config
            shifted = {_shift_key(config): self.shift}
            pipe.scheduler = type(pipe.scheduler).from_config(config, **shifted)
        within = self.compile and (self.cache is not None or self.offload == "group")
        for transformer in _transformers(pipe):
            if within:
                compiling.compile_within_hooks(transformer, fullgraph=True)
            if self.cache is not None:
                self.cache.enable(transformer, self.steps)
        self._place(pipe, device)
        if self.compile and not within:
            for transformer in _transformers(pipe):
                _compile(transformer)

    def _place(self, pipe: Any, device: str) -> None:
        match self.offload:
            case None:
                pipe.to(device)
            case "model":
                pipe.enable_model_cpu_offload(device=device)
            case "sequential":
                pipe.enable_sequential_cpu_offload(device=device)
            case "group":
                # With a cache blocks are skipped, which what is fetched ahead would wait for.
                _offload_groups(
                    pipe, torch.device(device), ahead=self.cache is None, tiled=self.vae_tiling
                )

    def describe(self) -> list[str]:
        """Each thing that is done, for a person and for a record."""
        said = {
            "compiled": self.compile,
            f"{SAID.get(self.quantize or '')} (torchao)": self.quantize,
            f"{self.cache}": self.cache,
            f"{self.offload} offload": self.offload,
            f"LoRA {self.lora}": self.lora,
            "VAE in tiles": self.vae_tiling,
            f"shift {self.shift or 0:g}": self.shift,
        }
        return [text for text, is_done in said.items() if is_done]

    def check_strength(self, strength: float | None) -> None:
        """Make sure that runs of a strength can have the cache.

        Raises:
            BadInputError: When they cannot.
        """
        if strength is not None and self.cache is not None and self.cache.name == MAG:
            raise BadInputError(
                "--cache mag and --strength cannot go together: its ratios are those of a whole "
                "run; take first-block or taylorseer"
            )


def is_compiled(pipe: Any) -> bool:
    """Whether a transformer of a pipeline is compiled, or a part of one."""
    return any(compiled.is_compiled(transformer) for transformer in _transformers(pipe))


def lora_files(path: Path) -> list[Path]:
    """The files of a LoRA."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _lora_file(path: Path) -> Path:
    found = lora_files(path)
    if len(found) != 1 or not found[0].is_file() or found[0].suffix != ".safetensors":
        raise BadInputError(
            f"--lora {path} must be a .safetensors file, or a folder that holds one of them"
        )
    return found[0]


def _require(module: str, option: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise BadInputError(f"{option} needs {package}: pip install {package}")


def _transformers(pipe: Any) -> Iterator[Any]:
    yield from (each for name in TRANSFORMERS if (each := getattr(pipe, name, None)) is not None)


def _load_lora(pipe: Any, path: Path) -> None:
    file = _lora_file(path)
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    except Exception as error:  # a library that is given anything raises anything
        raise BadInputError(f"--lora {path} does not fit {type(pipe).__name__}: {error}") from error
    if not pipe.get_list_adapters():
        raise BadInputError(
            f"--lora {path} holds nothing for {type(pipe).__name__}: is it of another model?"
        )


def _shift_key(config: Mapping[str, Any]) -> str:
    """Which entry of a scheduler's config shifts its noise levels.

    Raises:
        BadInputError: Where none does.
    """
    kind = config.get("_class_name", "a scheduler")
    if config.get("use_dynamic_shifting"):
        raise BadInputError(
            f"--shift: the scheduler of this model ({kind}) shifts its noise levels by the size of "
            "the video, leave it out"
        )
    if config.get("use_flow_sigmas") and "flow_shift" in config:
        return "flow_shift"
    if "shift" in config:
        return "shift"
    raise BadInputError(
        f"--shift: the scheduler of this model ({kind}) has noise levels without a shift, leave it "
        "out"
    )


def _tile(vae: Any) -> None:
    try:
        vae.enable_tiling()
    except (AttributeError, NotImplementedError) as error:
        raise BadInputError(
            f"--vae-tiling: diffusers has no tiles for {type(vae).__name__}, leave it out"
        ) from error


def _offload_groups(pipe: Any, device: torch.device, *, ahead: bool, tiled: bool) -> None:
    """Transformers block by block, all else layer by layer; the next is fetched meanwhile.

    Not by the method of the pipeline, which has one kind for all and would first bring what it is
    to leave out, the transformers, to the GPU as a whole. What a tiled VAE will need next cannot be
    learned from its first call, so nothing is fetched ahead there.
    """
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        kind: dict[str, Any] = {"offload_type": "leaf_level"}
        if name in TRANSFORMERS:
            kind = {"offload_type": "block_level", "num_blocks_per_group": 1}
        stream = ahead and device.type == "cuda" and not (tiled and name == "vae")
        enable = getattr(module, "enable_group_offload", partial(apply_group_offloading, module))
        enable(onload_device=device, use_stream=stream, **kind)


def _compile(transformer: nn.Module) -> None:
    """Compile its blocks, where diffusers knows them, else all of it at once."""
    if getattr(transformer, "_repeated_blocks", None):
        compiling.compile_blocks(transformer, fullgraph=True)
    else:
        transformer.compile(fullgraph=True)
