"""Densities of heads that differ: made up, or those that a trained model had, on another shape.

    python benchmarks/uneven_heads.py    # how unequal the work of two devices is with each of them

``head_balance.py`` recorded those of the shipped model.
"""

from __future__ import annotations

import json
import random
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

from vidsparse.errors import BadInputError

MEAN, LEAST, MOST = 0.25, 0.01, 1.0  # density
MADE_UP, TRAINED, SHUFFLED = "made-up", "trained", ":shuffled"
FROM, TO = 0.05, 0.45  # of those that are made up
RECORD = Path(__file__).parent / "results" / "head_densities_25x160x160.json"
Densities = list[list[float]]  # of each layer, those of its heads


def kinds(words: str) -> list[str]:
    """The sets of densities that are asked for.

    Args:
        words: By comma: ``made-up``, a preset in ``RECORD``, or ``trained`` for all of those. Heads
            keep their order. That leaves devices with whole layers of the small model, whose means
            differ little: ``balanced:shuffled`` has them in random order.
    """
    there = list(_recorded())
    each = [there if word == TRAINED else [word] for word in words.split(",")]
    return [kind for found in each for kind in found]


def densities(kind: str, layers: int, heads: int) -> Densities:
    """A density for each head of each layer, 0.25 in the mean of all.

    Args:
        kind: One that ``kinds`` names.
        layers: Of the model that is to have them.
        heads: Of a layer.

    Raises:
        BadInputError: For another kind.
    """
    if kind == MADE_UP:
        step = (TO - FROM) / max(1, heads - 1)
        return [[FROM + step * head for head in range(heads)] for _ in range(layers)]
    recorded, preset = _recorded(), kind.removesuffix(SHUFFLED)
    if preset not in recorded:
        known = ", ".join((MADE_UP, TRAINED, *recorded, *(name + SHUFFLED for name in recorded)))
        raise BadInputError(f"no densities of heads {kind!r}: choose from {known}")
    return spread(recorded[preset], layers, heads, is_shuffled=preset != kind)


def spread(trained: Densities, layers: int, heads: int, *, is_shuffled: bool = False) -> Densities:
    """All heads of a model in their order, repeated over those of another, scaled to one mean."""
    flat = [density for layer in trained for density in layer]
    every = list(islice(cycle(flat), layers * heads))
    if is_shuffled:
        random.Random(0).shuffle(every)
    scaled = scale(every)
    return [scaled[start : start + heads] for start in range(0, len(scaled), heads)]


def scale(each: list[float]) -> list[float]:
    """Multiply densities, within what one can be, until their mean is 0.25."""
    each = [min(MOST, max(LEAST, density)) for density in each]
    while abs((now := mean(each)) - MEAN) > 1e-6:
        each = [min(MOST, max(LEAST, density * MEAN / now)) for density in each]
    return each


def _recorded() -> dict[str, Densities]:
    """The densities of the trained model's heads, by the preset of the run."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    return {row["preset"]: row["head_densities"] for row in rows}


def imbalance(layer: list[float], devices: int) -> float:
    """Work of the busiest device over the mean, of heads that are left in turn."""
    each = len(layer) // devices
    work = [sum(layer[start : start + each]) for start in range(0, each * devices, each)]
    return max(work) / mean(work)


def main() -> None:
    for name in (MADE_UP, *(preset + order for preset in _recorded() for order in ("", SHUFFLED))):
        found = [imbalance(layer, 2) for layer in densities(name, 40, 40)]
        print(f"{name:20s} mean {mean(found):.3f}  worst layer {max(found):.3f}")


if __name__ == "__main__":
    main()
