"""Every metric that there is: those that the files beside this one declare.

An id followed by ``@dense`` is the dense run's own value of a metric of one clip, which a metric
"closer to dense" is read against.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.metrics.registry import REGISTRY, Metric, MetricInfo

DENSE = "@dense"
AS_ASKED = "judge/as_asked"
LEADING = ("psnr", "ssim", "ms_ssim", "temporal_psnr")  # in this order, before all others
TIERS = ("exact", "weights", "judge", "stand-in")
READERS = ("catalogue", "scores", "accumulated", "fidelity")  # files that declare no metric


def _find_all() -> list[Metric]:
    """Import the files that may declare a metric, and put what they declare in order."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in READERS:
            import_module(f"vidsparse.metrics.{path.stem}")

    def place(metric: Metric) -> tuple[int, int]:
        leading = LEADING.index(metric.info.id) if metric.info.id in LEADING else len(LEADING)
        return leading, TIERS.index(metric.info.tier)

    return sorted(REGISTRY.values(), key=place)


ALL = {each.info.id: each for each in _find_all()}
METRICS: dict[str, MetricInfo] = {
    info.id: info
    for metric in ALL.values()
    for info in (metric.info, *(each.info for each in metric.derived.values()))
}


def info(metric_id: str) -> MetricInfo:
    """Return the facts of a metric, also under its ``@dense`` id.

    Raises:
        BadInputError: When there is no such metric.
    """
    try:
        return METRICS[metric_id.removesuffix(DENSE)]
    except KeyError:
        raise _unknown(metric_id, METRICS) from None


def find_metric(metric_id: str) -> Metric:
    """Return a metric with its function; what is derived from another has none of its own.

    Raises:
        BadInputError: When there is no such metric.
    """
    try:
        return ALL[metric_id]
    except KeyError:
        raise _unknown(metric_id, ALL) from None


def _unknown(metric_id: str, known: dict[str, Any]) -> BadInputError:
    return BadInputError(f"there is no metric {metric_id!r}: choose from {', '.join(known)}")
