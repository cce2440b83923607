"""Pipelines of real size with random weights: the denoising loop without text encoder and VAE.

What a pipeline computes does not depend on what its weights are, so its time can be measured
without a download. Everything is read from configs and from the pipeline's own signature.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import guiders as _guiders
from torch import Tensor, nn

from vidsparse.bench.stand_ins import put_stand_ins
from vidsparse.errors import BadInputError
from vidsparse.pipelines.model import Model
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.checkpoints import Checkpoint
from vidsparse.pipelines.running.empty import explained
from vidsparse.pipelines.running.geometry import call_parameters, transformer_of
from vidsparse.pipelines.running.shapes import empty_pipeline

guiders: Any = _guiders  # what it exports, its types do not say
TRANSFORMERS = ("transformer", "transformer_2")
COUNTS = ("layer", "block", "depth")  # what a config calls how many blocks there are
TEXT_WIDTH = (  # what it calls the width of its text embeddings
    "text_dim", "text_embed_dim", "caption_channels", "joint_attention_dim", "cap_feat_dim",
    "text_in_dim", "cross_attention_dim",
)  # fmt: skip
LENGTH = "max_sequence_length"


@dataclass(frozen=True, slots=True)
class RealSize:
    """A pipeline that runs.

    Attributes:
        pipe: With random weights, without text encoder and VAE.
        lists: Blocks in each list of blocks with self-attention, as they run; by its name.
        whole: The same of the whole model.
    """

    pipe: Any
    lists: Mapping[str, int]
    whole: Mapping[str, int]

    @property
    def blocks(self) -> int:
        """How many blocks run."""
        return sum(self.lists.values())

    @property
    def all_blocks(self) -> int:
        """How many the whole model has."""
        return sum(self.whole.values())

    def transformers(self) -> list[Any]:
        """One, or two experts."""
        found = map(self.pipe.components.get, TRANSFORMERS)
        return [module for module in found if module is not None]


def build(checkpoint: Checkpoint, *, layers: int | None, device: str, dtype: str) -> RealSize:
    """Build a pipeline from configs alone.

    Args:
        checkpoint: With configs, or a name in the model table.
        layers: Blocks of each transformer; all when None.
        device: Where.
        dtype: Of the weights; modules that diffusers keeps in float32 are.

    Raises:
        BadInputError: When the model cannot have so many blocks, or its call takes no embeddings.
    """
    empty = empty_pipeline(checkpoint)
    model = find_model(transformer_of(empty))
    whole = lists_of(model, transformer_of(empty))
    wanted = whole if layers is None else fewer(whole, layers)
    made: dict[str, Any] = {
        name: _random(model, module, wanted, device, getattr(torch, dtype))
        for name in TRANSFORMERS
        if (module := empty.components.get(name)) is not None
    }
    if "guider" in empty.components:  # that of a folder; a name has none, and two branches then
        made["guider"] = empty.guider or guiders.ClassifierFreeGuidance()
    own = {name: empty.config[name] for name in _settings(empty)}
    with explained(f"diffusers cannot make a {type(empty).__name__} of parts without weights"):
        pipe = type(empty)(**empty.components | made, **own)
    left_out = pipe.components.keys() - made.keys() - {"scheduler"}
    pipe.register_modules(**dict.fromkeys(left_out))  # what was read of the VAE stays
    if model.pipeline.stand_ins:
        put_stand_ins(pipe)
    pipe.set_progress_bar_config(disable=True)
    return RealSize(pipe, wanted, whole)


def _settings(pipe: Any) -> Iterator[str]:
    """The arguments of a pipeline that are no components."""
    for name in inspect.signature(type(pipe).__init__).parameters:
        if name != "self" and name not in pipe.components and name in pipe.config:
            yield name


def lists_of(model: Model, transformer: nn.Module) -> dict[str, int]:
    """Blocks in each list of blocks with self-attention."""
    return {name: len(blocks) for name, blocks in model.block_lists(transformer).items()}


def fewer(whole: Mapping[str, int], layers: int) -> dict[str, int]:
    """So many blocks, in the same proportions.

    Raises:
        BadInputError: When there are none, or the lists cannot share them as they share all.

    Example:
        >>> fewer({"transformer_blocks": 20, "single_transformer_blocks": 40}, 12)
        {'transformer_blocks': 4, 'single_transformer_blocks': 8}
    """
    total = sum(whole.values())
    step = total // math.gcd(*whole.values())
    if not 0 < layers <= total or layers % step:
        kinds = " + ".join(str(number) for number in whole.values())
        raise BadInputError(
            f"--layers {layers} is not possible: the model has {kinds} blocks, so take a multiple "
            f"of {step} up to {total}"
        )
    return {name: layers * number // total for name, number in whole.items()}


def _random(
    model: Model, empty: Any, wanted: Mapping[str, int], device: str, dtype: torch.dtype
) -> Any:
    """A transformer of the same class and config but for its number of blocks."""
    config, kind = dict(empty.config), type(empty)
    for name, number in lists_of(model, empty).items():
        keys = [key for key, value in config.items() if _counts(key, value, number)]
        config |= dict.fromkeys(keys, wanted[name])
    torch.manual_seed(0)
    what = f"diffusers cannot make a smaller {kind.__name__}"
    with explained(what), _default(dtype), torch.device(device):
        made = kind.from_config(config)
    if lists_of(model, made) != wanted:
        raise BadInputError(
            f"the config of {kind.__name__} does not say how many blocks it has in a way that "
            "vidsparse knows: leave --layers out"
        )
    _keep_in_float32(made)
    return made.eval().requires_grad_(False)


def _counts(key: str, value: Any, number: int) -> bool:
    """Whether an entry of a config says how many blocks there are."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return is_number and value == number and any(word in key for word in COUNTS)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of a dtype, as where diffusers loads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _keep_in_float32(module: Any) -> None:
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()


@contextmanager
def without_blocks(real: RealSize) -> Iterator[None]:
    """Run everything but the blocks: what a step costs however many there are."""
    taken = []
    for transformer in real.transformers():
        for name in real.lists:
            parent, _, last = name.rpartition(".")
            owner = transformer.get_submodule(parent)
            taken.append((owner, last, getattr(owner, last)))
            setattr(owner, last, nn.ModuleList())
    try:
        yield
    finally:
        for owner, last, blocks in taken:
            setattr(owner, last, blocks)


def text_arguments(pipe: Any, *, with_negative: bool) -> dict[str, Any]:
    """Random embeddings of the longest text, by the names that a pipeline's call has for them.

    Args:
        pipe: With its transformers.
        with_negative: Whether a second prompt leads away, as guidance wants it.

    Raises:
        BadInputError: When the call takes no embeddings, or nobody says how wide they are.
    """
    parameters, transformer = call_parameters(pipe), transformer_of(pipe)
    if "prompt_embeds" not in parameters:
        raise BadInputError(
            f"{type(pipe).__name__} takes no prompt_embeds: it cannot run without its text encoder"
        )
    config = transformer.config
    width = next((config[key] for key in TEXT_WIDTH if config.get(key)), None)
    if width is None:
        raise BadInputError(
            f"the config of {type(transformer).__name__} does not say how wide its text is: it "
            "cannot run without its text encoder"
        )
    length = config.get("max_text_seq_length") or _default_of(parameters, LENGTH)
    length = length or getattr(pipe, "tokenizer_max_length", 77)
    second = getattr(pipe, "tokenizer_2_max_length", 0), config.get("text_embed_2_dim")
    given: dict[str, Any] = {}
    for name in parameters:
        bare = name.removeprefix("negative_")
        if name != bare and not with_negative:
            continue
        if bare == "prompt_embeds":
            given[name] = _draw(transformer, length, width)
        elif bare == "pooled_prompt_embeds":
            given[name] = _draw(transformer, config.get("pooled_projection_dim") or width)
        elif bare in ("prompt_attention_mask", "prompt_embeds_mask"):
            given[name] = torch.ones(1, length, dtype=torch.bool, device=transformer.device)
        elif bare == "prompt_embeds_2" and all(second):
            given[name] = _draw(transformer, *second)
        elif bare == "prompt_embeds_mask_2":
            given[name] = torch.ones(1, second[0], dtype=torch.bool, device=transformer.device)
        elif bare == "prompt":
            given[name] = None
    return given | ({LENGTH: length} if LENGTH in parameters else {})


def _default_of(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    return parameters[name].default if name in parameters else None


def _draw(transformer: Any, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(1, *shape, generator=draw).to(transformer.device, transformer.dtype)
