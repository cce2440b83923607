"""A cache of diffusers beside a run with random weights: what is skipped, and who says so.

Some caches look at the number of the step alone and skip the same whatever the weights are. Others
look at what a block computes, which of random weights says nothing: they are told what to skip.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vidsparse.bench.real_size import RealSize
from vidsparse.errors import BadInputError
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.caches import Cache
from vidsparse.pipelines.undo import Undo

ALWAYS, NEVER = math.inf, -1.0  # thresholds under which any change is small enough, or none
TOLD = "told: every second of the last steps, or as evenly as can be from a half on"
OWN = "its own: it looks at the number of the step alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRun:
    """A cache, and how much it skips.

    Attributes:
        text: The cache as it was asked for.
        cache: The same, read.
        skip_share: Share of the steps that it is told to skip; None where it says so itself.
    """

    text: str
    cache: Cache
    skip_share: float | None = None

    def check(self, kinds: list[str], steps: int) -> None:
        """Make sure that it can be run.

        Args:
            kinds: Classes of the transformers.
            steps: Denoising steps.

        Raises:
            BadInputError: When it cannot, or nobody says what is skipped.
        """
        self.cache.check(kinds)
        share = self.skip_share
        if share is None and self.cache.looks_at_data:
            raise BadInputError(
                f"--cache {self.cache.name} decides by what blocks compute, and with random "
                "weights that is noise: give --skip-share, the share of the steps that it skips "
                "on your model, such as 0.3"
            )
        if share is None:
            return
        if not self.cache.looks_at_data:
            raise BadInputError(
                f"--cache {self.cache.name} decides by the number of the step alone, with any "
                "weights: leave --skip-share out"
            )
        if not 0 < share < 1 or not 1 <= round(share * steps) < steps:
            raise BadInputError(
                f"--skip-share {share:g} of {steps} steps is not possible: it is above 0 and "
                "below 1, and the first step is never skipped"
            )

    def row_name(self, name: str) -> str:
        """That of the row that is beside a row without a cache."""
        told = "" if self.skip_share is None else f" at {self.skip_share:g}"
        return f"{name} + {self.text}{told}"


def told_steps(steps: int, share: float) -> set[int]:
    """Which steps are skipped, numbered from 0.

    Where caches skip, they skip late steps, in which little changes, and compute in between: every
    second of the last ones, and from a half on as evenly as can be. The first is never skipped.

    Args:
        steps: Of the run.
        share: Of them.

    Example:
        >>> sorted(told_steps(10, 0.3)), sorted(told_steps(10, 0.7))
        ([5, 7, 9], [2, 3, 4, 6, 7, 8, 9])
        >>> told_steps(1, 0.3)
        set()
    """
    number = min(max(round(share * steps), 1), steps - 1)
    first = max(1, steps - 2 * number)
    length = steps - first
    return {
        first + index
        for index in range(length)
        if (index + 1) * number // length > index * number // length
    }


@dataclass(slots=True)
class Skips:
    """What a cache skips in a run, counted.

    Attributes:
        layers: What a forward call runs if nothing is skipped.
        told: Steps that are skipped; None where the cache says so.
        calls: Of each forward call of a transformer, its step and how much of that ran.
        levers: Of the caches that are told.
    """

    layers: int
    told: set[int] | None
    calls: list[list[int]] = field(default_factory=list)
    levers: list[Any] = field(default_factory=list)
    _step: int = 0

    def before_step(self, step: int) -> None:
        """Hear that a step begins, and tell the caches what to do."""
        self._step = step
        for lever in self.levers:
            lever.threshold = ALWAYS if step in (self.told or ()) else NEVER

    def forward_begins(self, *call: Any) -> None:
        """Hear that a transformer was called."""
        self.calls.append([self._step, 0])

    def counted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, heard of whenever it runs."""

        @functools.wraps(forward)
        def runs(*args: Any, **kwargs: Any) -> Any:
            self.calls[-1][1] += 1
            return forward(*args, **kwargs)

        return runs

    def facts(self, steps: int) -> dict[str, Any]:
        """For a row: how many calls were skipped, and what ran at each step."""
        skipped = sum(ran < self.layers for _, ran in self.calls)
        return {
            "forwards": len(self.calls),
            "forwards_skipped": skipped,
            "skipped_share": skipped / len(self.calls),
            "skips": OWN if self.told is None else TOLD,
            "ran_per_step": [
                [ran for at, ran in self.calls if at == step] for step in range(steps)
            ],
        }


@contextmanager
def cached(real: RealSize, run: CachedRun, steps: int) -> Iterator[Skips]:
    """Enable a cache on every transformer for one run.

    What it may skip is counted from within its hooks, whatever compiled code that may be.

    Raises:
        BadInputError: When diffusers cannot.
    """
    told = None if run.skip_share is None else told_steps(steps, run.skip_share)
    skips, undo = Skips(real.blocks, told), Undo()
    try:
        for transformer in real.transformers():
            for part in _skippable(transformer, run.cache):
                _replace_forward(part, skips, undo)
            hook = transformer.register_forward_pre_hook(skips.forward_begins)
            undo.do(lambda: None, hook.remove)
            undo.do(lambda: None, transformer.disable_cache)
            run.cache.enable(transformer, steps)
            skips.levers += _levers(transformer) if told is not None else []
        yield skips
    finally:
        undo.run()


def _skippable(transformer: nn.Module, cache: Cache) -> list[nn.Module]:
    model = find_model(transformer)
    if cache.skips_blocks:
        return [block for blocks in model.block_lists(transformer).values() for block in blocks]
    return model.layers(transformer)


def _replace_forward(module: nn.Module, skips: Skips, undo: Undo) -> None:
    before = vars(module).get("forward")

    def put_back() -> None:
        vars(module).pop("forward", None)
        if before is not None:
            module.forward = before

    undo.do(lambda: setattr(module, "forward", skips.counted(module.forward)), put_back)


def _levers(transformer: nn.Module) -> list[Any]:
    """The hooks that compare a change with a threshold."""
    from diffusers.hooks.first_block_cache import FBCHeadBlockHook

    return [
        hook
        for module in transformer.modules()
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values()
        if isinstance(hook, FBCHeadBlockHook)
    ]
