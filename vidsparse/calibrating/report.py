"""What is said of a calibration: in its file, and to the person who asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidsparse.calibrated import Calibrated
from vidsparse.comparison.origin import origin
from vidsparse.comparison.spec import Spec
from vidsparse.stored_masks import StoredMasks


def told(spec: Spec, machine: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Of what the file was made, and by what."""
    found = origin(spec.job, spec.cases[0].request, machine, command)
    prompts = [each.prompt for each in spec.job.requests]
    found["made_for"] |= {"prompts": prompts, "seeds": list(spec.seeds)}
    return found


def runs(number: int) -> str:
    return "one dense run" if number == 1 else f"{number} dense runs"


def shares(found: Calibrated) -> dict[str, float]:
    """Of all values, weighed by the share of the run that they are of, how many are which."""
    weights: dict[str, float] = {}
    begin = 0.0
    for until, layers in found.parts:
        for _, values in layers:
            for value in values:
                name = value if isinstance(value, str) else f"{value:g}"
                weights[name] = weights.get(name, 0.0) + (until - begin) / len(values)
        begin = until
    total = sum(weights.values())
    return {name: weight / total for name, weight in sorted(weights.items(), key=_heaviest)}


def _heaviest(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def sentence(found: Calibrated, stored: StoredMasks | None) -> str:
    kind = "" if isinstance(found.parts[0][1][0][1][0], str) else "margin "
    taken = ", ".join(f"{kind}{name} {share:.0%}" for name, share in shares(found).items())
    parts = "the whole run" if len(found.parts) == 1 else f"{len(found.parts)} parts of the run"
    said = f"{found.method}: {taken}, in {parts}"
    if stored is None:
        return said
    size = Path(stored.path).stat().st_size / 1e6
    return f"{said}; masks of mean density {stored.density:.3f} in {stored.path} ({size:,.1f} MB)"
