"""The best dense run: dense at every step, by the fastest dense engine that is here."""

from __future__ import annotations

import dataclasses

from vidsparse.comparison.baselines import LABELS
from vidsparse.preset import Dense, Preset
from vidsparse.presets import PRESETS

BEST_DENSE = "best dense"


def dense_preset(label: str) -> Preset:
    """A preset that is dense at every step: a session then does no more than drop empty masks.

    Args:
        label: Of the engine, as ``time_dense_engines`` has it; that of stock is the model's own.
    """
    engine = {name: word for word, name in LABELS.items()}.get(label, Dense.MODEL)
    always = {"density": 1.0, "warmup": 1.0, "ramp_until": 1.0, "min_tokens": 0, "dense": engine}
    return dataclasses.replace(PRESETS["balanced"].override(always), name=BEST_DENSE)
