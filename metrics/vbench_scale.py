"""VBench's sixteen dimensions, its scale and its totals, as its ``scripts/constant.py`` has them.

    normalised = (raw - low) / (high - low)
    quality    = weighted mean of seven, dynamic degree counting half
    semantic   = mean of nine
    total      = (4 * quality + semantic) / 5

Paper: Huang et al., arXiv 2311.17982.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidsparse.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Dimension:
    """One of VBench's sixteen.

    Attributes:
        low: Raw value that counts as 0.
        high: Raw value that counts as 1.
        quality: Part of the quality score, or else of the semantic score.
        own_prompts: Whether vbench measures it on clips of prompts that are not its own.
        weight: Weight within its score.
    """

    low: float
    high: float
    quality: bool
    own_prompts: bool
    weight: float = 1.0


DIMENSIONS = {
    "subject_consistency": Dimension(0.1462, 1.0, quality=True, own_prompts=True),
    "background_consistency": Dimension(0.2615, 1.0, quality=True, own_prompts=True),
    "temporal_flickering": Dimension(0.6293, 1.0, quality=True, own_prompts=True),
    "motion_smoothness": Dimension(0.706, 0.9975, quality=True, own_prompts=True),
    "dynamic_degree": Dimension(0.0, 1.0, quality=True, own_prompts=True, weight=0.5),
    "aesthetic_quality": Dimension(0.0, 1.0, quality=True, own_prompts=True),
    "imaging_quality": Dimension(0.0, 1.0, quality=True, own_prompts=True),
    "object_class": Dimension(0.0, 1.0, quality=False, own_prompts=False),
    "multiple_objects": Dimension(0.0, 1.0, quality=False, own_prompts=False),
    "human_action": Dimension(0.0, 1.0, quality=False, own_prompts=False),
    "color": Dimension(0.0, 1.0, quality=False, own_prompts=False),
    "spatial_relationship": Dimension(0.0, 1.0, quality=False, own_prompts=False),
    "scene": Dimension(0.0, 0.8222, quality=False, own_prompts=False),
    "appearance_style": Dimension(0.0009, 0.2855, quality=False, own_prompts=False),
    "temporal_style": Dimension(0.0, 0.364, quality=False, own_prompts=True),
    "overall_consistency": Dimension(0.0, 0.364, quality=False, own_prompts=True),
}


def normalize(dimension: str, raw: float) -> float:
    """Put a raw value on VBench's scale: 0 and 1 at its published extremes, not clipped.

    Raises:
        BadInputError: When there is no such dimension, or the value is not between 0 and 1.
    """
    check_dimensions([dimension])
    if not 0 <= raw <= 1:
        raise BadInputError(
            f"VBench's {dimension} lies between 0 and 1, got {raw:g}: divide a percentage by 100"
        )
    facts = DIMENSIONS[dimension]
    return (raw - facts.low) / (facts.high - facts.low)


def vbench_quality(raw: Mapping[str, float]) -> float:
    """Return VBench's quality score, the weighted mean of its seven quality dimensions.

    Raises:
        BadInputError: When a dimension is missing, or a value is not between 0 and 1.
    """
    return _score(raw, quality=True)


def vbench_total(raw: Mapping[str, float]) -> float:
    """Return VBench's total score: four parts quality, one part semantic.

    VBench's own script counts a missing dimension as a raw 0, which for temporal flickering is
    -1.7 on its scale; this one refuses.

    Args:
        raw: The raw value of each of the sixteen dimensions.

    Raises:
        BadInputError: When a dimension is missing, or a value is not between 0 and 1.
    """
    missing = DIMENSIONS.keys() - raw.keys()
    if missing:
        raise BadInputError(
            f"VBench's total needs all {len(DIMENSIONS)} dimensions, missing: "
            f"{', '.join(sorted(missing))}: report the dimensions you have, without a total"
        )
    return (4 * vbench_quality(raw) + _score(raw, quality=False)) / 5


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Refuse names that are not VBench's, or none at all, with a :class:`BadInputError`."""
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or not dimensions:
        raise BadInputError(
            f"VBench has no dimension {', '.join(unknown) or '(none given)'}: choose from "
            f"{', '.join(DIMENSIONS)}"
        )


def _score(raw: Mapping[str, float], *, quality: bool) -> float:
    wanted = {name: facts for name, facts in DIMENSIONS.items() if facts.quality == quality}
    missing = wanted.keys() - raw.keys()
    if missing:
        raise BadInputError(
            f"VBench's {'quality' if quality else 'semantic'} score is missing: "
            f"{', '.join(sorted(missing))}: report the dimensions you have, without a score"
        )
    total = sum(facts.weight * normalize(name, raw[name]) for name, facts in wanted.items())
    return total / sum(facts.weight for facts in wanted.values())
