"""The parts by name, so that a preset can be given another one: ``--set order=hilbert``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.policies.compensation import (
    Centroid,
    Compensation,
    Levels,
    NoCompensation,
    Rescale,
    Residual,
)
from vidsparse.policies.coreset import Coreset
from vidsparse.policies.correction import Correction, Delta, NoCorrection
from vidsparse.policies.deviation import Deviation
from vidsparse.policies.estimator import Estimator
from vidsparse.policies.exact import Antidiagonal, Exact
from vidsparse.policies.geometric import Band, Disc, First, FrameBand, Neighbourhood, Places, Slab
from vidsparse.policies.importance import Importance
from vidsparse.policies.merged import Merged
from vidsparse.policies.natten import Natten
from vidsparse.policies.observed import Observed
from vidsparse.policies.orders import (
    Axes,
    Checkerboard,
    Chunks,
    Cycle,
    Hilbert,
    Order,
    Raster,
    Residues,
    Tile,
)
from vidsparse.policies.part import Part
from vidsparse.policies.peak import Peak
from vidsparse.policies.percentile import Percentile
from vidsparse.policies.pooled import Pooled, SubBlock
from vidsparse.policies.pruned import Kept
from vidsparse.policies.radial import Radial
from vidsparse.policies.random import Random
from vidsparse.policies.ranked import Ranked
from vidsparse.policies.refined import Refined
from vidsparse.policies.rows import Rows
from vidsparse.policies.sampled_p import SampledP
from vidsparse.policies.selectors import Budget, Selector, Threshold, TopK, TopP
from vidsparse.policies.semantic import Semantic
from vidsparse.policies.stored import Stored
from vidsparse.policies.strided_peak import StridedPeak
from vidsparse.policies.stripes import Stripes
from vidsparse.policies.tokens import Tokens
from vidsparse.policies.tolerance import Tolerance
from vidsparse.policies.value_aware import Routing, ValueAware
from vidsparse.policies.vertical_slash import VerticalSlash
from vidsparse.policies.window import Window

ORDERS: dict[str, type[Order]] = {
    "raster": Raster,
    "tile": Tile,
    "hilbert": Hilbert,
    "axes": Axes,
    "cycle": Cycle,
    "chunks": Chunks,
    "checkerboard": Checkerboard,
    "residues": Residues,
    "semantic": Semantic,
    "importance": Importance,
    "coreset": Coreset,
    "merged": Merged,
}

ESTIMATORS: dict[str, type[Estimator]] = {
    "value_aware": ValueAware,
    "pooled": Pooled,
    "subblock": SubBlock,
    "antidiagonal": Antidiagonal,
    "exact": Exact,
    "peak": Peak,
    "strided_peak": StridedPeak,
    "routing": Routing,
    "observed": Observed,
    "radial": Radial,
    "band": Band,
    "first": First,
    "frame_band": FrameBand,
    "places": Places,
    "stripes": Stripes,
    "neighbourhood": Neighbourhood,
    "slab": Slab,
    "disc": Disc,
    "window": Window,
    "vertical_slash": VerticalSlash,
    "kept": Kept,
    "natten": Natten,
    "stored": Stored,
    "random": Random,
}

SELECTORS: dict[str, type[Selector]] = {
    "top_k": TopK,
    "top_p": TopP,
    "threshold": Threshold,
    "budget": Budget,
    "tolerance": Tolerance,
    "sampled_p": SampledP,
    "deviation": Deviation,
    "percentile": Percentile,
    "rows": Rows,
    "refined": Refined,
    "ranked": Ranked,
    "tokens": Tokens,
}

COMPENSATIONS: dict[str, type[Compensation]] = {
    "none": NoCompensation,
    "rescale": Rescale,
    "centroid": Centroid,
    "levels": Levels,
    "residual": Residual,
}

CORRECTIONS: dict[str, type[Correction]] = {
    "none": NoCorrection,
    "delta": Delta,
}

PARTS: Mapping[str, dict[str, Any]] = {
    "order": ORDERS,
    "estimator": ESTIMATORS,
    "selector": SELECTORS,
    "compensation": COMPENSATIONS,
    "correction": CORRECTIONS,
}
"""The tables by the name of the part."""

KINDS: Mapping[str, type[Part]] = {
    "order": Order,
    "estimator": Estimator,
    "selector": Selector,
    "compensation": Compensation,
    "correction": Correction,
}


def part_name(table: Mapping[str, type], part: Any) -> str:
    """Name a part as ``--set`` does, with the parameters that differ from its defaults.

    One that has no name there, of somebody's own, is called as its class.
    """
    kind = type(part)
    name = next((name for name, known in table.items() if known is kind), kind.__name__)
    changed = [
        f"{field.name}={getattr(part, field.name)}"
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default
    ]
    return f"{name} ({', '.join(changed)})" if changed else name


def register_part(name: str, part: type[Part]) -> None:
    """Give a part of your own its name, so that presets can be given it: ``--set order=mine``.

    Args:
        name: Of letters, digits and ``_``.
        part: A frozen dataclass below ``Order``, ``Estimator``, ``Selector``, ``Compensation`` or
            ``Correction``.

    Raises:
        BadInputError: When it is no such class, or another part of its kind has the name.
    """
    is_class = isinstance(part, type)
    kind = next((k for k, base in KINDS.items() if is_class and issubclass(part, base)), None)
    if kind is None:
        kinds = ", ".join(base.__name__ for base in KINDS.values())
        raise BadInputError(f"a part is a class below one of {kinds}, got {part!r}")
    if "__dataclass_params__" not in vars(part) or not vars(part)["__dataclass_params__"].frozen:
        raise BadInputError(
            f"{part.__name__} has to be a frozen dataclass: write "
            "@dataclass(frozen=True, kw_only=True) above it"
        )
    if kind == "estimator" and not hasattr(part, "measure"):
        raise BadInputError(
            f"{part.__name__} does not say what its scores mean: give it a measure, such as "
            "measure: ClassVar[Measure] = Measure.RANK"
        )
    if not re.fullmatch(r"[a-z]\w*", name, flags=re.ASCII):
        raise BadInputError(f"a part cannot be named {name!r}: take small letters, digits and _")
    before = PARTS[kind].get(name, part)
    if (before.__module__, before.__qualname__) != (part.__module__, part.__qualname__):
        raise BadInputError(
            f"{name!r} is the name of the {kind} {before.__name__} of {before.__module__}: take "
            "another"
        )
    PARTS[kind][name] = part
