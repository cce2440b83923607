"""Caches of diffusers, which skip calls: named on the command line, made for a transformer."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines.models import find_model

Read = Callable[[str], Any]


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError("it must be at least 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("it must be at least 0")
    return number


def _at_least_one(text: str) -> int:
    number = _count(text)
    if number < 1:
        raise ValueError("it must be at least 1")
    return number


def _whether(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text.lower() == "true"


def _ratios(text: str) -> tuple[float, ...]:
    found = json.loads(Path(text).expanduser().read_text(encoding="utf-8"))
    if not isinstance(found, list) or not found:
        raise ValueError("the file must hold a JSON list of numbers")
    return tuple(_share(str(number)) for number in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A cache of diffusers.

    Attributes:
        config: Class of its config in ``diffusers.hooks``.
        main: The parameter that a bare value is of.
        parameters: Of the config, and how each is read; all others stay as they are there.
    """

    config: str
    main: str
    parameters: Mapping[str, Read]


CACHES: Mapping[str, _Kind] = {
    "first-block": _Kind(
        config="FirstBlockCacheConfig", main="threshold", parameters={"threshold": _share}
    ),
    "mag": _Kind(
        config="MagCacheConfig",
        main="threshold",
        parameters={
            "threshold": _share,
            "max_skip_steps": _count,
            "retention_ratio": _share,
            "mag_ratios": _ratios,
        },
    ),
    "taylorseer": _Kind(
        config="TaylorSeerCacheConfig",
        main="cache_interval",
        parameters={
            "cache_interval": _at_least_one,
            "disable_cache_before_step": _count,
            "disable_cache_after_step": _count,
            "max_order": _count,
            "use_lite_mode": _whether,
        },
    ),
}
FIRST_BLOCK, MAG, TAYLORSEER = "first-block", "mag", "taylorseer"
WITH_RATIOS = "FluxTransformer2DModel"  # the one whose ratios come with diffusers


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A cache with its settings.

    Attributes:
        name: In ``CACHES``.
        settings: Parameters of its config, and their values.
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        said = ", ".join(f"{key}={_short(value)}" for key, value in self.settings)
        return CACHES[self.name].config.removesuffix("Config") + (f" ({said})" if said else "")

    @property
    def skips_blocks(self) -> bool:
        """Whether it skips whole blocks; else the self-attention of every block."""
        return self.name != TAYLORSEER or bool(dict(self.settings).get("use_lite_mode"))

    @property
    def looks_at_data(self) -> bool:
        """Whether it decides by what a block computes; else by the number of the step alone."""
        return self.name == FIRST_BLOCK

    def check_compiled(self) -> None:
        """Make sure that it goes with compiled blocks.

        Raises:
            BadInputError: When it decides within a block.
        """
        if not self.skips_blocks:
            raise BadInputError(
                f"--compile and --cache {self.name} cannot go together: its hook is around the "
                "attention within a block, where it splits the compiled code, which is then made "
                "again as the steps go on, and hides the attention from a session; take "
                f"{self.name}=use_lite_mode=true, which skips whole blocks"
            )

    def check(self, kinds: list[str]) -> None:
        """Make sure that transformers of these classes can have it.

        Raises:
            BadInputError: When they cannot.
        """
        if self.name != MAG:
            return
        if len(kinds) > 1:
            raise BadInputError(
                "--cache mag counts the steps of one transformer, and this model shares them "
                "between two: take first-block or taylorseer"
            )
        if "mag_ratios" not in dict(self.settings) and kinds != [WITH_RATIOS]:
            raise BadInputError(
                f"--cache mag needs ratios measured on the model, and diffusers has those of FLUX "
                f"alone: give --cache mag=mag_ratios=FILE.json, a list of numbers "
                f"(MagCacheConfig(calibrate=True) measures them for {', '.join(kinds)})"
            )

    def check_pipeline(self, kind: type) -> None:
        """Make sure that a pipeline of this class tells a cache what it needs to know.

        Raises:
            BadInputError: When its first forward call would fail.
        """
        if not _names_branches(kind):
            raise BadInputError(
                f"--cache {self.name}: {kind.__name__} does not tell caches of diffusers which "
                "branch of guidance a call is of (cache_context), leave it out"
            )

    def enable(self, transformer: nn.Module, steps: int | None) -> None:
        """Let a transformer skip calls, before or after it is in a session.

        Args:
            transformer: A model of diffusers.
            steps: Of every run; MagCache needs to know.

        Raises:
            BadInputError: When diffusers cannot, or the cache would do nothing.
        """
        kind = type(transformer).__name__
        if not callable(getattr(transformer, "enable_cache", None)):
            raise BadInputError(f"--cache {self.name}: diffusers has no cache for {kind}")
        before = _hooked(transformer)
        try:
            transformer.enable_cache(self._config(transformer, steps))  # type: ignore[operator]
        except ValueError as error:
            raise BadInputError(f"--cache {self.name} is not for {kind}: {error}") from error
        if _hooked(transformer) == before:
            raise BadInputError(
                f"--cache {self.name} finds nothing to keep in {kind}: take another cache"
            )

    def _config(self, transformer: nn.Module, steps: int | None) -> Any:
        from diffusers import hooks

        own = dict(self.settings)
        if self.name == MAG:
            if "mag_ratios" not in own:
                from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

                own["mag_ratios"] = FLUX_MAG_RATIOS
            own["mag_ratios"] = torch.as_tensor(own["mag_ratios"])
            own["num_inference_steps"] = steps
        if self.name == TAYLORSEER and not own.get("use_lite_mode"):
            own["cache_identifiers"] = [find_model(transformer).self_attention]
        return getattr(hooks, CACHES[self.name].config)(**own)


def read_cache(text: str) -> Cache:
    """Read ``NAME``, ``NAME=VALUE`` or ``NAME=KEY=VALUE,KEY=VALUE``.

    Raises:
        BadInputError: For an unknown name or key, or a value that is none.

    Example:
        >>> str(read_cache("first-block=0.1"))
        'FirstBlockCache (threshold=0.1)'
        >>> read_cache("taylorseer=cache_interval=4,max_order=2").settings
        (('cache_interval', 4), ('max_order', 2))
    """
    name, _, rest = text.partition("=")
    if name not in CACHES:
        raise BadInputError(f"unknown cache {name!r}: choose {', '.join(CACHES)}")
    kind, settings = CACHES[name], {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            key, value = kind.main, item
        if key not in kind.parameters:
            raise BadInputError(
                f"--cache {name} has no {key!r}: it has {', '.join(kind.parameters)}"
            )
        if key in settings:
            raise BadInputError(f"--cache {name} has {key} twice: give it once")
        try:
            settings[key] = kind.parameters[key](value)
        except (ValueError, TypeError, OSError) as error:
            raise BadInputError(f"--cache {name} cannot take {key}={value}: {error}") from error
    return Cache(name=name, settings=tuple(settings.items()))


def _names_branches(kind: type) -> bool:
    """Whether a method of a pipeline's class enters a context of caches."""
    methods = [
        inspect.unwrap(each)
        for cls in kind.__mro__
        for each in vars(cls).values()
        if inspect.isfunction(each)
    ]
    return any("cache_context" in method.__code__.co_names for method in methods)


def _hooked(transformer: nn.Module) -> int:
    """How many of its modules have a hook of diffusers; its own is of the contexts of a call."""
    return sum(
        len(registry.hooks)
        for module in transformer.modules()
        if module is not transformer
        and (registry := getattr(module, "_diffusers_hook", None)) is not None
    )


def _short(value: Any) -> Any:
    return f"{len(value)} numbers" if isinstance(value, tuple) else value
