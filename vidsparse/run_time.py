"""How long a run takes: predicted from a model's shapes, a GPU's rates and what a preset computes.

A layer is its linear layers (at the GPU's rate), all else that reads and writes tokens (at its
memory's), both never less than launches take, and self-attention: dense at the rate of the fastest
engine that diffusers takes by itself, or sparse by the line through timed calls. The rates of the
H200 are fitted to measured forward calls of five models (benchmarks/results/real_sizes_h200.json
and real_sizes_compiled_h200.json, ladder_calls_h200.json, ladder_shapes_h200.json), the floor of
launches to a run of the shipped model, its text encoder and VAE among it
(compare_49x256x256_h200.txt); those of other GPUs are its shares of the published peak and
bandwidth, which makes them estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.forecast import Forecast
from vidsparse.parameters import suggest
from vidsparse.policies.policy import Policy
from vidsparse.preset import Precision, Preset

MEASURED = "h200"
PEAK, BANDWIDTH = 989.0, 4.8  # of an H200: TFLOP/s in bf16, TB/s
LINEAR, WIDE, NARROW = 790.0, 577.0, 433.0  # TFLOP/s there: linear layers, heads of 128, of 64
OTHER = {False: 0.11, True: 0.043}  # ns for a number of a token in a layer: eager, compiled
QUANTIZING, EIGHT_BITS, INT8_DENSE = 0.011, 0.68, 0.642  # shares of a dense call in 16 bits
MOST = 4_000_000  # tokens; no model is meant for more
WORTH = 1.03  # times as fast: less is next to nothing
LAUNCHES = 2.0  # ms that planning takes at least: launches, whatever the GPU
FLOOR = 1.6  # ms that a layer takes at least besides attention, eager: launches, whatever the GPU


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, by what its maker says of it.

    Attributes:
        label: Its name.
        peak: TFLOP/s of dense bf16 products that are summed in float32.
        bandwidth: TB/s of its memory.
    """

    label: str
    peak: float
    bandwidth: float


GPUS: Mapping[str, Gpu] = {
    "h200": Gpu("NVIDIA H200", PEAK, BANDWIDTH),
    "h100": Gpu("NVIDIA H100 SXM", PEAK, 3.35),
    "b200": Gpu("NVIDIA B200", 2250.0, 8.0),
    "a100": Gpu("NVIDIA A100 80 GB", 312.0, 2.04),
    "l40s": Gpu("NVIDIA L40S", 362.0, 0.864),
    "rtx5090": Gpu("NVIDIA RTX 5090", 209.5, 1.79),
    "rtx4090": Gpu("NVIDIA RTX 4090", 165.2, 1.01),
    "rtx3090": Gpu("NVIDIA RTX 3090", 71.0, 0.936),
}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        BadInputError: With the near matches, when it is not in the table.
    """
    if name.lower() not in GPUS:
        raise BadInputError(f"unknown GPU {name!r}: {suggest(name.lower(), GPUS)}")
    return GPUS[name.lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What a forward call of a transformer works on.

    Attributes:
        tokens: Of the sequence, text among them.
        layers: Self-attention layers.
        heads: Of each.
        head_dim: Numbers of a head.
        linear: Weights of linear layers that each token of the video passes, over all layers.
        samples: Forward calls of a step, or samples in one: two with guidance.
    """

    tokens: int
    layers: int
    heads: int
    head_dim: int
    linear: float
    samples: int = 2


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a denoising step, dense.

    Attributes:
        attention: Of self-attention.
        rest: Of everything else.
    """

    attention: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.attention + self.rest

    @property
    def attention_share(self) -> float:
        """Of the step, from 0 to 1: more than this cannot be gained."""
        return self.attention / self.seconds


def dense_step(shapes: Shapes, gpu: Gpu, *, compiled: bool = False) -> StepTime:
    """The time of a step of unmodified diffusers.

    Args:
        shapes: What it works on.
        gpu: Where.
        compiled: Whether the blocks are compiled.
    """
    numbers = shapes.heads * shapes.head_dim
    pairs = 4 * shapes.tokens**2 * numbers * shapes.layers * shapes.samples
    rate = (WIDE if shapes.head_dim >= 96 else NARROW) * gpu.peak / PEAK
    passed = shapes.tokens * shapes.samples
    products = 2 * shapes.linear * passed / (LINEAR * gpu.peak / PEAK * 1e12)
    other = OTHER[compiled] * 1e-9 * BANDWIDTH / gpu.bandwidth * passed * numbers * shapes.layers
    floor = 0.0 if compiled else 1e-3 * FLOOR * shapes.layers * shapes.samples
    return StepTime(pairs / (rate * 1e12), max(products + other, floor))


@dataclass(frozen=True, slots=True)
class CallCost:
    """A sparse call beside a dense one: ``fixed + (start + slope * density) * dense``.

    Attributes:
        fixed: Milliseconds.
        start: Share of the dense call that passes whatever is kept.
        slope: What all pairs would cost, as a share of the dense call.
        dense: What a dense call costs within the session, as a share of one outside.
    """

    fixed: float
    start: float
    slope: float
    dense: float = 1.0


def call_cost(preset: Preset, block: int) -> CallCost:
    """By the kind of plan: clusters, means that stand in, blocks of 128 or of 64, a mask.

    Lines through calls of 75,600 tokens and 40 heads (benchmarks/results/ladder_calls_h200.json);
    in eight bits by benchmarks/results/low_bit_h200.json. What an estimator alone costs is the same
    for all that look at data here.
    """
    cost = _cost_in_16_bits(preset.policy, block)
    if preset.precision is Precision.MODEL:
        return cost
    return CallCost(cost.fixed, cost.start + QUANTIZING, EIGHT_BITS * cost.slope, INT8_DENSE)


def _cost_in_16_bits(policy: Policy, block: int) -> CallCost:
    if policy.order.makes_clusters:
        return CallCost(LAUNCHES, 0.045, 1.32)
    slope = 0.935 if block >= 128 else 1.16
    if policy.static:
        return CallCost(0.0, 0.0, slope)
    start = 0.033 if policy.compensation.through_means else 0.0
    return CallCost(LAUNCHES, start + (0.0 if block >= 128 else 0.016), slope)


def sparse_run(dense: StepTime, shapes: Shapes, cost: CallCost, step_density: list[float]) -> float:
    """Seconds of a run of sparse steps.

    Args:
        dense: The time of a dense step.
        shapes: What it works on.
        cost: Of a call.
        step_density: Mean density of the layers at each step; 1 is a dense step.
    """
    calls = shapes.layers * shapes.samples
    total = 0.0
    for density in step_density:
        share = cost.dense if density >= 1 else cost.start + cost.slope * density
        fixed = 0.0 if density >= 1 else 1e-3 * cost.fixed * calls
        total += dense.rest + fixed + share * dense.attention
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """A run dense and sparse, without text encoder and VAE.

    Attributes:
        gpu: Where.
        preset: Of the sparse run.
        compiled: Whether blocks are compiled.
        steps: Denoising steps.
        dense: A dense step.
        sparse: Seconds of the sparse run.
        tokens: Of the sequence.
        gains_from: Tokens from which on it is worth its while; None where it never is.
    """

    gpu: Gpu
    preset: str
    compiled: bool
    steps: int
    dense: StepTime
    sparse: float
    tokens: int = 0
    gains_from: int | None = None

    @property
    def gain(self) -> float:
        """Seconds of the dense run over those of the sparse one."""
        return self.steps * self.dense.seconds / self.sparse

    def to_json(self) -> dict[str, Any]:
        """Plain values; seconds are of the whole run."""
        return {
            "gpu": self.gpu.label,
            "measured": self.gpu is GPUS[MEASURED],
            "compiled": self.compiled,
            "dense_seconds": self.steps * self.dense.seconds,
            "sparse_seconds": self.sparse,
            "gain": self.gain,
            "attention_share": self.dense.attention_share,
            "break_even_tokens": self.gains_from,
        }

    def rows(self) -> list[tuple[str, str]]:
        """What a table says."""
        how = f"{self.gpu.label}{', compiled' if self.compiled else ''}"
        return [
            (f"dense run on {how}", minutes(self.steps * self.dense.seconds)),
            ("of that self-attention", f"{self.dense.attention_share:.0%}"),
            (f"run with {self.preset}", f"{minutes(self.sparse)} ({self.gain:.2f}x)"),
        ]

    def basis(self) -> list[str]:
        """What the times are made of."""
        basis = (
            "predicted, within 10 % of what was measured on this GPU"
            if self.gpu is GPUS[MEASURED]
            else f"an estimate from the published peak of the {self.gpu.label}: none was at hand"
        )
        return [f"times are {basis}; text encoder and VAE are left out"]

    def notes(self) -> list[str]:
        """Sentences the user should read."""
        found = self.basis()
        share = f"self-attention is {self.dense.attention_share:.0%} of a dense step"
        if self.gain < 1:
            found.append(f"{self.preset} is slower than dense here: planning outweighs it, {share}")
        elif self.gain < WORTH:
            found.append(f"{self.preset} gains next to nothing here: {share}")
        return found + self.nothing_to_gain()

    def nothing_to_gain(self) -> list[str]:
        """A sentence where a longer sequence of the same model would gain, and this does not."""
        if self.gain >= WORTH or not self.gains_from or self.gains_from <= self.tokens:
            return []
        return [
            f"at {self.tokens:,} tokens this model gains nothing with {self.preset}: it does from "
            f"about {self.gains_from:,} tokens on"
        ]


def predict(found: Forecast, shapes: Shapes, gpu: str, *, compiled: bool = False) -> RunTimes:
    """The time of a run that was planned.

    Args:
        found: What it computes.
        shapes: What it works on.
        gpu: A name in ``GPUS``.
        compiled: Whether blocks are compiled.

    Raises:
        BadInputError: For an unknown GPU.
    """
    where = find_gpu(gpu)
    dense = dense_step(shapes, where, compiled=compiled)
    cost = call_cost(found.preset, found.block)
    return RunTimes(
        gpu=where,
        preset=found.preset.name,
        compiled=compiled,
        steps=len(found.step_density),
        dense=dense,
        sparse=sparse_run(dense, shapes, cost, found.step_density),
        tokens=shapes.tokens,
        gains_from=break_even(found, shapes, where, compiled=compiled),
    )


def break_even(found: Forecast, shapes: Shapes, gpu: Gpu, *, compiled: bool) -> int | None:
    """Tokens from which on a preset is worth its while, if it keeps as much of them as planned.

    Returns:
        To two digits; None where it is not even at ``MOST`` tokens, or everything runs dense.
    """
    cost = call_cost(found.preset, found.block)

    def gains(tokens: int) -> bool:
        other = replace(shapes, tokens=tokens)
        dense = dense_step(other, gpu, compiled=compiled)
        seconds = len(found.step_density) * dense.seconds
        return seconds >= WORTH * sparse_run(dense, other, cost, found.step_density)

    low, high = max(1, found.preset.min_tokens), MOST
    if found.dense_steps_share == 1 or not gains(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gains(middle) else (middle, high)
    return round(high, 2 - len(str(high)))


def minutes(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> minutes(83.2), minutes(9.31), minutes(7384)
        ('1 min 23 s', '9.3 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
