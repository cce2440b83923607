"""What a metric is: a pure function of clips and the facts about it, declared in one place.

A new metric is one file beside this one::

    @metric("sharpness", label="Sharpness", better="closer to dense", alone=True, side=16,
            caveat="Noise raises it.")
    def sharpness(frames: RawFrames) -> Tensor: ...

Four tiers. "exact": equal to its published definition, on nothing but the frames. "weights": that
too, with networks from local files. "stand-in": cheap and without weights, in the place of a metric
that needs them; never call it by that metric's name, and never mix it into a total. "judge": by the
classifier that ships with the tiny pipeline, of its clips alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from vidsparse.metrics.record import Record

Better = Literal["higher", "lower", "closer to dense"]
Tier = Literal["exact", "weights", "stand-in", "judge"]
Values = Callable[[Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])


class MetricInfo(Record):
    """Facts about one metric.

    Attributes:
        id: Its key in results.
        label: For tables and axes.
        unit: "" for a plain number.
        better: Which direction is better.
        tier: How far the number can be trusted, see above.
        stands_in_for: For a stand-in, the id or name of what it replaces.
        caveat: One sentence to print beside it.
    """

    id: str
    label: str
    unit: str
    better: Better
    tier: Tier
    stands_in_for: str | None
    caveat: str


@dataclass(frozen=True, slots=True)
class Need:
    """A network that a metric needs.

    Attributes:
        key: The field of ``Weights`` that names its file.
        load: Reads it.
    """

    key: str
    load: Callable[[Path], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """Another number from the same values.

    Attributes:
        info: Facts about it.
        function: From what ``Metric.measure`` gave, of one clip or of several, to a scalar.
    """

    info: MetricInfo
    function: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        info: Facts about it.
        measure: A clip, and its reference unless ``alone``, to a number for each frame or pair of
            frames, or one for the clip: what is added up over clips.
        value: From those numbers to the metric's, entry by entry.
        alone: Whether it looks at one clip; it is then measured on the reference too.
        side: Least height and width, in pixels.
        frames: Least number of frames; may depend on the frames per second.
        needs: Networks, by the parameter of ``measure`` that takes them.
        derived: Other numbers from the same values, by their ids.
    """

    info: MetricInfo
    measure: Callable[..., Any]
    value: Values
    alone: bool
    side: int
    frames: int | Callable[[float], int]
    needs: Mapping[str, Need]
    derived: dict[str, Derived] = field(default_factory=dict)

    @property
    def takes_fps(self) -> bool:
        """Whether it depends on the frames per second."""
        return "fps" in inspect.signature(self.measure).parameters

    def fits(self, frames: int, side: int, fps: float) -> bool:
        """Whether a clip is long and large enough."""
        least = self.frames if isinstance(self.frames, int) else self.frames(fps)
        return frames >= least and side >= self.side


REGISTRY: dict[str, Metric] = {}


def metric(
    metric_id: str,
    *,
    label: str,
    better: Better,
    caveat: str,
    unit: str = "",
    tier: Tier = "exact",
    stands_in_for: str | None = None,
    alone: bool = False,
    side: int = 1,
    frames: int | Callable[[float], int] = 1,
    needs: Mapping[str, Need] | None = None,
    value: Values = lambda values: values,
) -> Callable[[Function], Function]:
    """Declare a function as a metric; it stays the function that it is.

    Args:
        metric_id: Its key in results.
        label: For tables and axes.
        better: Which direction is better.
        caveat: One sentence to print beside it.
        unit: Of its values.
        tier: How far they can be trusted.
        stands_in_for: For a stand-in, what it replaces.
        alone: Whether it looks at one clip alone.
        side: Least height and width it takes, in pixels.
        frames: Least number of frames it takes.
        needs: Networks, by the parameter that takes them.
        value: From what the function gives to the metric's values, entry by entry.
    """
    info = MetricInfo(
        id=metric_id,
        label=label,
        unit=unit,
        better=better,
        tier=tier,
        stands_in_for=stands_in_for,
        caveat=caveat,
    )

    def declare(function: Function) -> Function:
        REGISTRY[metric_id] = Metric(
            info=info,
            measure=function,
            value=value,
            alone=alone,
            side=side,
            frames=frames,
            needs=needs or {},
        )
        return function

    return declare


def derived(metric_id: str, *, of: str, label: str, caveat: str) -> Callable[[Values], Values]:
    """Declare another number from the values of a metric.

    Args:
        metric_id: Its key in results.
        of: The id of that metric, declared before.
        label: For tables and axes.
        caveat: One sentence to print beside it.
    """
    known = REGISTRY[of]
    facts = {"id": metric_id, "label": label, "caveat": caveat}

    def declare(function: Values) -> Values:
        info = known.info.model_copy(update=facts)
        known.derived[metric_id] = Derived(info=info, function=function)
        return function

    return declare
