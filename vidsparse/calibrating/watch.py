"""A dense run that is watched: a preset that keeps every block, and what sees its calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from vidsparse.calibrated import Part, Values
from vidsparse.dial import full_density
from vidsparse.errors import BadInputError
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.geometric import Neighbourhood
from vidsparse.policies.policy import Policy
from vidsparse.policies.selectors import Threshold
from vidsparse.policies.work import Work
from vidsparse.preset import Preset
from vidsparse.schedule import Schedule
from vidsparse.sparse_attention import Call
from vidsparse.state import LayerState

ALL = 1 << 20  # tokens along an axis: a window of all of them
Where = tuple[tuple[float, float], str, int]
"""The share of the run before and after a step, the transformer and the layer."""


class Finder(Protocol):
    """Finds something in the calls of dense runs, as an observer of their session."""

    def start_run(self) -> None:
        """Another run begins."""

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Look at a call, in which a preset would be sparse; its output is the dense one."""


def watched(preset: Preset) -> Preset:
    """A preset that computes everything, and counts as sparse where another one would be."""
    every = Neighbourhood(window_frames=ALL, window_height=ALL, window_width=ALL)
    policy = Policy(estimator=every, selector=Threshold(), block=preset.policy.block)
    schedule = preset.schedule
    return Preset(
        name="watched",
        summary=f"Dense, watched for {preset.name}",
        source="ours",
        policy=policy,
        schedule=Schedule(
            warmup=schedule.warmup, ramp_until=schedule.warmup, cooldown=schedule.cooldown,
            dense_layers=schedule.dense_layers, share_branches=False,
        ),
        min_tokens=0,
    )  # fmt: skip


def alone(preset: Preset, call: Call, work: Work) -> Inputs:
    """A call as a preset sees it at full sparsity, with nothing remembered.

    Raises:
        BadInputError: When devices share the heads.
    """
    if call.share is not None:
        raise BadInputError("calibrating sees all heads of a layer: run it on one device")
    density, progress = preset.policy.density, call.progress
    if preset.policy.mean_density is not None and progress is not None:
        density = full_density(preset, progress.run, layers=call.layers)
    return dataclasses.replace(work.inputs, density=density, state=LayerState(), shared=None)


def where(call: Call) -> Where:
    """Which part of its run a call is of."""
    assert call.progress is not None
    return (call.progress.before, call.progress.after), call.expert, call.layer


def parts_of(found: Mapping[Where, Values], experts: Sequence[str]) -> tuple[Part, ...]:
    """What was found, in parts of the run as a file has them; equal neighbours are one.

    Args:
        found: The values of each layer at each step.
        experts: The transformers; layers are called by their number alone where there is one.
    """
    parts: list[Part] = []
    for before, after in sorted({step for step, _, _ in found}):
        layers = {
            (expert, layer): values
            for (step, expert, layer), values in found.items()
            if step == (before, after)
        }
        named = tuple(
            (str(layer) if len(experts) == 1 else f"{expert}/{layer}", layers[expert, layer])
            for expert, layer in sorted(layers)
        )
        if parts and parts[-1][1] == named:
            parts.pop()
        parts.append((after, named))
    end = parts.pop()
    return (*parts, (1.0, end[1]))
