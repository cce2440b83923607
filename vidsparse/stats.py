"""What a session did: realised density per step, layer and head, time, and every fallback."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CallKey:
    """Which attention call: a step of the generation, a layer of a transformer, a guidance branch.

    Samples of a batch that are laid out differently are calls of their own.
    """

    step: int
    layer: int
    branch: str
    sample: int = 0


@dataclass(eq=False, repr=False)
class Stats:
    """Counters of the latest generation; fallbacks, engines and notes are of the whole session.

    Attributes:
        calls: Realised density of each head, ``(heads,)`` or ``(1,)``, of each attention call.
        sigmas: Noise level of each step.
        fallbacks: How many calls ran dense although the schedule wanted them sparse, by reason.
        engines: How many calls each kernel engine ran.
        plans: How many sparse calls of the generation ran a plan of which origin: ``made`` for it,
            ``kept`` from a branch or step before, ``of another layer``, or ``static``.
        blocks: Tokens in a block on each token grid; clusters, of sizes of their own, are left out.
        notes: Sentences the user should read, each said once.
        generations: How many generations the session has seen.
        memory_bytes: What the session remembers of its calls now, on the device.
        host_memory_bytes: And in host memory.
        loads: Work of the busiest device over the mean, ``()``, of each sparse call whose heads
            devices share.
    """

    calls: dict[CallKey, Tensor] = field(default_factory=dict)
    sigmas: dict[int, float] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    plans: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    generations: int = 0
    memory_bytes: int = 0
    host_memory_bytes: int = 0
    loads: dict[CallKey, Tensor] = field(default_factory=dict)
    _timed: list[tuple[Stopwatch, Stopwatch]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        from vidsparse.stats_record import describe_stats

        return describe_stats(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything counted, as plain values; on a GPU, this waits for it."""
        from vidsparse.stats_record import stats_to_dict

        return stats_to_dict(self)

    def to_json(self) -> str:
        """The same as a JSON object."""
        return json.dumps(self.to_dict())

    def start_generation(self) -> None:
        """Forget the calls of the generation before."""
        self.calls.clear()
        self.sigmas.clear()
        self.blocks.clear()
        self.plans = {}
        self.loads.clear()
        self.generations += 1
        self._timed.clear()

    def forget(self) -> None:
        """Forget all that was counted, of the session too; what was said stays."""
        self.start_generation()
        self.fallbacks.clear()
        self.engines.clear()
        self.generations = 0

    def time(self, whole: Stopwatch, planning: Stopwatch) -> None:
        """Note how long a sparse attention call took, and its planning within that."""
        self._timed.append((whole, planning))

    @property
    def attention_seconds(self) -> float:
        """Time in sparse attention calls, planning included; on a GPU, this waits for it."""
        return sum(whole.seconds for whole, _ in self._timed)

    @property
    def plan_seconds(self) -> float:
        """The part of that time spent on deciding what to compute, and on putting it in order."""
        return sum(planning.seconds for _, planning in self._timed)

    def record(self, key: CallKey, sigma: float | None, head_density: Tensor) -> None:
        """Note one attention call; ``head_density`` stays on its device until it is read."""
        self.calls[key] = head_density
        if sigma is not None:
            self.sigmas[key.step] = sigma

    @property
    def mean_density(self) -> float:
        """Mean over all self-attention calls of the generation, dense ones included.

        Raises:
            RuntimeError: Before the first generation.
        """
        if not self.calls:
            raise RuntimeError("nothing was generated in this session yet")
        return mean(_mean_by(lambda key: (key.step, key.layer, key.branch), self.calls).values())

    @property
    def step_imbalance(self) -> dict[int, float]:
        """Work of the busiest device over the mean, at each step; empty on one device."""
        return _mean_by(lambda key: key.step, self.loads)

    @property
    def step_density(self) -> dict[int, float]:
        """Mean density of each step."""
        return _mean_by(lambda key: key.step, self.calls)

    @property
    def latest_density(self) -> float | None:
        """Mean density so far of the step that runs now; None before the first."""
        if not self.calls:
            return None
        return self.step_density[max(key.step for key in self.calls)]

    @property
    def layer_density(self) -> dict[int, float]:
        """Mean density of each layer."""
        return _mean_by(lambda key: key.layer, self.calls)

    @property
    def dense_steps_share(self) -> float:
        """Share of the steps in which every call was dense: the warm-up, as it really was.

        A sparse call that keeps everything, and is corrected besides, computes more than that.
        """
        steps = self.step_density
        return sum(density == 1.0 for density in steps.values()) / max(1, len(steps))

    def describe_fallbacks(self) -> str:
        """One clause: what fell back to dense, and why."""
        if not self.fallbacks:
            return "nothing fell back to dense"
        reasons = [
            f"{reason} ({count} call{'s' * (count != 1)})"
            for reason, count in self.fallbacks.items()
        ]
        return f"fell back to dense: {'; '.join(reasons)}"

    def describe_blocks(self) -> str:
        """A clause to end a sentence: how large blocks of one size were; empty if there were none.

        Example:
            >>> Stats(blocks={"21x45x80": 128, "5x9x16": 64}).describe_blocks()
            ', blocks of 64 and 128 tokens'
        """
        sizes = sorted(set(self.blocks.values()))
        return f", blocks of {' and '.join(map(str, sizes))} tokens" if sizes else ""

    def summary(self) -> str:
        """A few lines for a person."""
        if not self.calls:
            lines = ["vidsparse: nothing was generated in this session yet"]
            lines += [self.describe_fallbacks()] if self.fallbacks else []
            return "\n".join([*lines, *self.notes])
        lines = [
            f"mean density {self.mean_density:.3f} over {len(self.step_density)} steps x "
            f"{len(self.layer_density)} layers, {self.dense_steps_share:.0%} of the steps dense"
            f"{self.describe_blocks()}",
            self.describe_fallbacks(),
            *self.notes,
        ]
        if self.attention_seconds:
            share = self.plan_seconds / self.attention_seconds
            lines.insert(
                1, f"sparse attention {self.attention_seconds:.1f} s, {share:.0%} of it planning"
            )
        if self.plans.get("of another layer"):
            own = sum(self.plans.values()) - self.plans["of another layer"]
            lines.append(
                f"{self.plans['of another layer']} calls ran the plan of another layer, {own} not"
            )
        if self.loads:
            load = mean(self.step_imbalance.values())
            lines.append(f"the busiest device has {load:.2f} x the mean work")
        return "\n".join(lines)


Group = TypeVar("Group", bound=Hashable)


def _mean_by(
    group: Callable[[CallKey], Group], values: Mapping[CallKey, Tensor]
) -> dict[Group, float]:
    """Mean of each group; the samples of a batch count together as the one call they are."""
    calls: dict[tuple[int, int, str], list[float]] = {}
    for key, value in values.items():
        calls.setdefault((key.step, key.layer, key.branch), []).append(float(value.mean()))
    parts: dict[Group, list[float]] = {}
    for call, samples in calls.items():
        parts.setdefault(group(CallKey(*call)), []).append(mean(samples))
    return {name: mean(each) for name, each in sorted(parts.items())}


class Stopwatch:
    """Time spent in a ``with`` block, by the clock of the device that does the work.

    On a GPU it records events and reads them only when asked, so nothing waits.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._events = device, None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._host = 0.0

    @property
    def seconds(self) -> float:
        """How long it took; on a GPU this waits for it to end."""
        if self._events is None:
            return self._host
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000

    def __enter__(self) -> Stopwatch:
        if self._events is not None and not torch.cuda.is_current_stream_capturing():
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._host = time.perf_counter() - self._start
        if self._events is not None and not torch.cuda.is_current_stream_capturing():
            self._events[1].record(torch.cuda.current_stream(self._device))
