"""How long things take: calls measured in turns, and where the time of a generation goes.

With the share ``a`` of the dense run that is attention and the mean density ``d`` of the sparse
one, Amdahl's law bounds what sparsity can gain:

    ideal = 1 / (1 - a + a d)        limit = 1 / (1 - a)
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, computed_field, model_validator

from vidsparse.metrics.record import Record

ALIKE = 1.1  # how far apart the times of equal work may be, as a ratio
HEAD_START = 20_000_000  # cycles of a GPU, about 10 ms, in which the host starts what is timed
MATTERS = 0.02  # of a run: a difference of less is not worth a word


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one candidate.

    Attributes:
        median: Of all rounds.
        spread: Interquartile range.
        rounds: How many rounds were timed.
    """

    median: float
    spread: float
    rounds: int


class Stages(Record):
    """Seconds of one generation; what is in none of the stages is ``other``.

    Attributes:
        total: From prompt to frames.
        text_encoder: All its calls.
        attention: Self-attention, from q, k and v to its output, without ``planning``.
        planning: Deciding what to compute and putting tokens in order; 0 in a dense run.
        vae: Decoding.
    """

    total: float
    text_encoder: float = 0.0
    attention: float = 0.0
    planning: float = 0.0
    vae: float = 0.0

    @computed_field
    @property
    def other(self) -> float:
        """The rest: linear layers, cross-attention, the scheduler."""
        return self.total - self.text_encoder - self.attention - self.planning - self.vae

    @property
    def equal_work(self) -> float:
        """All but attention and planning: what a dense and a sparse run do alike."""
        return self.total - self.attention - self.planning

    @model_validator(mode="before")
    @classmethod
    def _without_other(cls, values: Any) -> Any:
        """Read what was written: ``other`` follows from the rest."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name != "other"}


class Amdahl(Record):
    """What sparsity gained, beside what it could gain.

    Attributes:
        attention_share: Share of the dense run that is self-attention, in [0, 1].
        ideal: Speed-up if attention took its density's share of the time, and planning none.
        limit: Speed-up if attention took no time; infinite where nothing else took any.
        achieved: Speed-up as it was.
        kernel_efficiency: Speed-up of attention without planning, times the density: 1 when a
            skipped pair saves all of its time.
    """

    attention_share: float
    ideal: float
    limit: float = Field(allow_inf_nan=True)
    achieved: float
    kernel_efficiency: float


def amdahl(dense: Stages, sparse: Stages, density: float) -> Amdahl:
    """Compare a sparse run with the dense one.

    Args:
        dense: Times of the dense run.
        sparse: Times of the sparse run.
        density: Mean over all calls of the sparse run, dense ones included.

    Example:
        >>> found = amdahl(
        ...     Stages(total=10, attention=8), Stages(total=5, attention=2.5, planning=0.5), 0.25
        ... )
        >>> round(found.ideal, 9), round(found.limit, 9), found.achieved, found.kernel_efficiency
        (2.5, 5.0, 2.0, 0.8)
    """
    share = dense.attention / dense.total
    rest = 1 - share
    return Amdahl(
        attention_share=share,
        ideal=1 / (rest + share * density),
        limit=1 / rest if rest > 0 else math.inf,
        achieved=dense.total / sparse.total,
        kernel_efficiency=density * dense.attention / max(sparse.attention, 1e-9),
    )


def tokens_to_gain(dense: Stages, sparse: Stages, tokens: int, gain: float) -> float | None:
    """From how many tokens on a preset gains so much, by its times at another length.

    Attention grows with the square of the tokens; planning and all else with the tokens.

    Args:
        dense: Times of the dense run.
        sparse: Times of the sparse run.
        tokens: Of both.
        gain: Speed-up that is asked for, above 1.

    Returns:
        None where no length gives it: attention itself does not gain as much.

    Example:
        >>> dense = Stages(total=10, attention=2)
        >>> tokens_to_gain(dense, Stages(total=9, attention=1), 1_000, 1.5)
        8000.0
    """
    left = dense.attention - gain * sparse.attention
    if left <= 0:
        return None
    return tokens * (gain * sparse.planning + (gain - 1) * dense.equal_work) / left


def timing_doubts(dense: Stages, sparse: Stages, density: float) -> list[str]:
    r"""Why the speed-up of a sparse run over its dense run may not be that of sparsity.

    Args:
        dense: Times of the dense run.
        sparse: Times of the sparse run.
        density: Mean over all calls of the sparse run, dense ones included.

    Returns:
        Sentences; none where equal work took equal time, and no more was gained than can be.

    Example:
        >>> dense = Stages(total=21.0, attention=0.2)
        >>> timing_doubts(dense, Stages(total=21.0, attention=0.2), 0.5)
        []
        >>> faster = timing_doubts(dense, Stages(total=15.8, attention=0.1), 0.5)
        >>> print(*(doubt.partition(":")[0] for doubt in faster), sep="\n")
        the same work (all but attention) took 20.8 s dense and 15.7 s sparse
        1.33x is more than sparsity can give
    """
    doubts = []
    ours, theirs = sparse.equal_work, dense.equal_work
    apart = abs(ours - theirs)
    shorter = min(ours, theirs)
    if apart > (ALIKE - 1) * shorter and apart > MATTERS * min(sparse.total, dense.total):
        doubts.append(
            f"the same work (all but attention) took {_seconds(theirs)} dense and "
            f"{_seconds(ours)} sparse: the machine was not as fast in both"
        )
    gain = amdahl(dense, sparse, density)
    share = f"attention is {100 * gain.attention_share:.1f} % of a dense run"
    if gain.achieved > (1 + MATTERS) * gain.limit:
        doubts.append(
            f"{gain.achieved:.2f}x is more than sparsity can give: {share}, so without any "
            f"attention it would be {gain.limit:.2f}x"
        )
    elif gain.achieved > (1 + MATTERS) * gain.ideal:
        doubts.append(
            f"{gain.achieved:.2f}x is more than the ideal {gain.ideal:.2f}x of density "
            f"{density:.2f}: {share}, and its kernel efficiency was {gain.kernel_efficiency:.2f}"
        )
    return doubts


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    device: str = "cpu",
    at_least_ms: float = 0.0,
    settle_ms: float = 0.0,
) -> dict[str, Timing]:
    """Time candidates one after another, round after round, after one round that does not count.

    A GPU slows down as it warms up and as its power limit bites, so what is measured minutes
    apart is not comparable; what takes turns is.

    Args:
        candidates: Functions without arguments, by name.
        rounds: Rounds that count.
        device: Where they run: CUDA is timed with events, the rest by the clock. A GPU is given
            something else to do first, so that what it waits for the host before its first kernel
            does not count: within a run the host is ahead of it.
        at_least_ms: A short candidate is repeated within its turn until it fills this time.
        settle_ms: For so long a candidate runs in its turn before it is timed: the clock of a GPU
            near its power limit is then its own, as in a run, and not that which the candidate
            before it has left.
    """
    clock = gpu_ms if device.startswith("cuda") else _clock
    repeats: dict[str, int] = {}
    settling: dict[str, int] = {}
    for name, function in candidates.items():
        function()  # compile, allocate
        once = max(clock(function, 1), 1e-3)
        repeats[name] = max(1, int(at_least_ms / once))
        settling[name] = math.ceil(settle_ms / once)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            taken = clock(function, repeats[name], settle=settling[name])
            times[name].append(taken / repeats[name])
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0, len(values))
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), third - first, len(values))


def gpu_ms(
    function: Callable[[], object],
    repeats: int = 1,
    *,
    head_start: int = HEAD_START,
    settle: int = 0,
) -> float:
    """Milliseconds of so many calls on a GPU, kept busy for some cycles as the host starts them.

    Calls that ``settle`` come before them and are not timed.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(head_start)
    for _ in range(settle):
        function()
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _clock(function: Callable[[], object], repeats: int, *, settle: int = 0) -> float:
    for _ in range(settle):
        function()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e3 * (time.perf_counter() - start)
