"""The parts by name, so that a preset can be given another one: ``--set order=hilbert``."""

from __future__ import annotations

from collections.abc import Mapping

from vidsparse.policies.compensation import (
    Centroid,
    Compensation,
    Levels,
    NoCompensation,
    Rescale,
    Residual,
)
from vidsparse.policies.estimator import Estimator
from vidsparse.policies.exact import Antidiagonal, Exact
from vidsparse.policies.geometric import Band, Disc, Neighbourhood, Places, Slab
from vidsparse.policies.observed import Observed
from vidsparse.policies.orders import Axes, Cycle, Hilbert, Order, Raster, Tile
from vidsparse.policies.part import Part
from vidsparse.policies.pooled import Pooled, SubBlock
from vidsparse.policies.radial import Radial
from vidsparse.policies.random import Random
from vidsparse.policies.selectors import Budget, Selector, Threshold, TopK, TopP
from vidsparse.policies.semantic import Semantic
from vidsparse.policies.stripes import Stripes
from vidsparse.policies.tolerance import Tolerance
from vidsparse.policies.value_aware import Routing, ValueAware

ORDERS: Mapping[str, type[Order]] = {
    "raster": Raster,
    "tile": Tile,
    "hilbert": Hilbert,
    "axes": Axes,
    "cycle": Cycle,
    "semantic": Semantic,
}

ESTIMATORS: Mapping[str, type[Estimator]] = {
    "value_aware": ValueAware,
    "pooled": Pooled,
    "subblock": SubBlock,
    "antidiagonal": Antidiagonal,
    "exact": Exact,
    "routing": Routing,
    "observed": Observed,
    "radial": Radial,
    "band": Band,
    "places": Places,
    "stripes": Stripes,
    "neighbourhood": Neighbourhood,
    "slab": Slab,
    "disc": Disc,
    "random": Random,
}

SELECTORS: Mapping[str, type[Selector]] = {
    "top_k": TopK,
    "top_p": TopP,
    "threshold": Threshold,
    "budget": Budget,
    "tolerance": Tolerance,
}

COMPENSATIONS: Mapping[str, type[Compensation]] = {
    "none": NoCompensation,
    "rescale": Rescale,
    "centroid": Centroid,
    "levels": Levels,
    "residual": Residual,
}

PARTS: Mapping[str, Mapping[str, type[Part]]] = {
    "order": ORDERS,
    "estimator": ESTIMATORS,
    "selector": SELECTORS,
    "compensation": COMPENSATIONS,
}
"""The tables by the name of the part."""

KINDS: Mapping[str, type[Part]] = {
    "order": Order,
    "estimator": Estimator,
    "selector": Selector,
    "compensation": Compensation,
}
