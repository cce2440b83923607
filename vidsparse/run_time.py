"""How long a run takes: predicted from a dense step (``step_time.py``) and what a preset computes.

A sparse step takes what a dense one takes besides self-attention, and the share of that which the
line through timed calls says (``call_cost.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vidsparse.call_cost import CallCost, call_cost, untimed
from vidsparse.forecast import Forecast
from vidsparse.gpus import GPUS, MEASURED, Gpu, find_gpu
from vidsparse.kernels.dense import FLASH
from vidsparse.kernels.engines.int8 import HOPPER, unfit_for
from vidsparse.preset import Preset
from vidsparse.step_time import Shapes, StepTime, by_engine, dense_step

MOST = 4_000_000  # tokens; no model is meant for more
WORTH = 1.03  # times as fast: less is next to nothing
LAYER = 12  # weights of a layer over its squared width: four projections, and twice four of an MLP


def sparse_run(dense: StepTime, shapes: Shapes, cost: CallCost, step_density: list[float]) -> float:
    """Seconds of a run of sparse steps.

    Args:
        dense: The time of a dense step.
        shapes: What it works on.
        cost: Of a call.
        step_density: Mean density of the layers at each step; 1 is a dense step.
    """
    calls = 1e-3 * shapes.layers * shapes.samples
    own = dense.mask if cost.dense is None else cost.dense
    total = 0.0
    for density in step_density:
        if density >= 1:
            total += dense.rest + own * dense.attention
            continue
        attention = cost.share(density) * dense.attention
        total += max(dense.rest + cost.fixed * calls + attention, cost.least * calls)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """A run dense and sparse, without text encoder and VAE.

    Attributes:
        gpu: Where.
        preset: Of the sparse run.
        compiled: Whether blocks are compiled.
        steps: Denoising steps.
        stock: A step of unmodified diffusers.
        dense: A dense step, compiled and quantised as the sparse run.
        flash: The same by flash-attn-4; None where no rate of it is known.
        sparse: Seconds of the sparse run.
        tokens: Of the sequence.
        gains_from: Tokens from which on it is worth its while; None where it never is.
        quantized: What the linear layers are in; 16 bits when None.
        stays_dense: Why a session leaves every call dense there; None where it does not.
        sparse_steps: Steps with a sparse call.
        unpriced: Whether its kernel is slower there than the one that was timed.
        untimed: Parts of it whose cost is not known.
    """

    gpu: Gpu
    preset: str
    compiled: bool
    steps: int
    stock: StepTime
    dense: StepTime
    flash: StepTime | None
    sparse: float
    tokens: int = 0
    gains_from: int | None = None
    quantized: str | None = None
    stays_dense: str | None = None
    sparse_steps: int = 1
    unpriced: bool = False
    untimed: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """Seconds of the dense run over those of the sparse one."""
        return self.whole(self.dense) / self.sparse

    @property
    def over_stock(self) -> float:
        """Seconds of the stock run over those of the sparse one."""
        return self.whole(self.stock) / self.sparse

    @property
    def how(self) -> str:
        """What was done to the transformer, in words; empty where nothing was."""
        weights = f"{self.quantized} weights" if self.quantized else ""
        return ", ".join(filter(None, ("compiled" if self.compiled else "", weights)))

    def whole(self, step: StepTime) -> float:
        """Seconds of a run of such steps."""
        return self.steps * step.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain values; seconds are of the whole run."""
        return {
            "gpu": self.gpu.label,
            "measured": self.gpu is GPUS[MEASURED],
            "compiled": self.compiled,
            "quantized": self.quantized,
            "stock_seconds": self.whole(self.stock),
            "dense_seconds": self.whole(self.dense),
            "flash_attn_4_seconds": self.flash and self.whole(self.flash),
            "sparse_seconds": self.sparse,
            "gain": self.gain,
            "over_stock": self.over_stock,
            "attention_share": self.dense.attention_share,
            "break_even_tokens": self.gains_from,
            "stays_dense": self.stays_dense is not None,
        }

    def rows(self) -> list[tuple[str, str]]:
        """What a table says."""
        gains, found = f"{self.gain:.2f}x", []
        if self.how:
            gains += f", {self.over_stock:.2f}x stock"
            found = [(f"stock run on {self.gpu.label}", minutes(self.whole(self.stock)))]
        where = ", ".join(filter(None, (self.gpu.label, self.how)))
        found += [
            (f"dense run on {where}", minutes(self.whole(self.dense))),
            ("of that self-attention", f"{self.dense.attention_share:.0%}"),
        ]
        if self.flash is not None:
            found.append(("dense run by flash-attn-4", minutes(self.whole(self.flash))))
        return [*found, (f"run with {self.preset}", f"{minutes(self.sparse)} ({gains})")]

    def basis(self) -> list[str]:
        """What the times are made of."""
        if self.gpu is not GPUS[MEASURED]:
            basis = f"an estimate from the published peak of the {self.gpu.label}: none was at hand"
        elif self.quantized:
            basis = (
                "predicted, within 10 % of every whole run that was measured on this GPU, which "
                "with FP8 weights was one model alone (Wan 2.1 14B at 720p)"
            )
        else:
            basis = "predicted, within 10 % of every whole run that was measured on this GPU"
        found = [f"times are {basis}; text encoder and VAE are left out"]
        if self.unpriced:
            found.append(
                f"clusters run on the portable kernel on the {self.gpu.label}, which took about "
                "twice as long as for boxes where both were timed: expect less than is predicted"
            )
        if self.untimed:
            found.append(
                f"calls with {' and '.join(self.untimed)} were not timed: they are taken to cost "
                "what most do, and may cost more"
            )
        return found

    def notes(self) -> list[str]:
        """Sentences the user should read."""
        found = self.basis()
        share = f"self-attention is {self.dense.attention_share:.0%} of a dense step"
        if self.stays_dense is not None:
            found.append(f"on the {self.gpu.label} every step runs dense: {self.stays_dense}")
        elif self.sparse_steps == 0:
            return found  # of which the forecast says why
        elif self.gain < 1:
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


def predict(
    found: Forecast,
    shapes: Shapes,
    gpu: str,
    *,
    compiled: bool = False,
    quantized: str | None = None,
) -> RunTimes:
    """The time of a run that was planned.

    Args:
        found: What it computes.
        shapes: What it works on.
        gpu: A name in ``GPUS``.
        compiled: Whether blocks are compiled.
        quantized: What the linear layers are in, as ``--quantize`` has it; 16 bits when None.

    Raises:
        BadInputError: For an unknown GPU, layers of which nothing was measured
            (``check_quantized``), eight bits that do not fit the GPU, or a run that a session
            would refuse for its memory.
    """
    where = find_gpu(gpu)
    found.preset.check_precision(
        unfit_for, f"on the {where.label}",
        head_dim=shapes.head_dim, device="cuda", arch=where.arch,
    )  # fmt: skip
    check_host_memory(found, shapes)
    dense = dense_step(shapes, where, compiled=compiled, quantized=quantized)
    cost = call_cost(found.preset, found.block, shapes.head_dim)
    why = why_dense(found, shapes, where)
    steps = len(found.step_density)
    sparse = sparse_run(dense, shapes, cost, found.step_density)
    return RunTimes(
        gpu=where,
        preset=found.preset.name,
        compiled=compiled,
        quantized=quantized,
        steps=steps,
        stock=dense_step(shapes, where),
        dense=dense,
        flash=by_engine(dense, FLASH, shapes.head_dim, where),
        sparse=sparse if why is None else steps * dense.seconds,
        tokens=shapes.tokens,
        gains_from=break_even(found, shapes, where, compiled=compiled, quantized=quantized),
        stays_dense=why,
        sparse_steps=sum(density != 1 for density in found.step_density),
        unpriced=found.preset.policy.order.makes_clusters and where.arch[0] != HOPPER,
        untimed=tuple(untimed(found.preset)),
    )


def check_host_memory(found: Forecast, shapes: Shapes) -> None:
    """Refuse what a session of a model in 16 bits would refuse at its first call.

    Raises:
        BadInputError: With the number of gigabytes.
    """
    compensation = found.preset.policy.compensation
    of_head = compensation.state_bytes(found.grid, shapes.head_dim, 2)
    compensation.check_memory(of_head * shapes.heads * shapes.layers)


def why_dense(found: Forecast, shapes: Shapes, gpu: Gpu) -> str | None:
    """Why a session leaves every call of a run dense on a GPU; None where it does not."""
    preset = found.preset
    if preset.min_tokens is not None or preset.policy.any_density is None:
        return None
    layer = one_layer(shapes.tokens, shapes.heads, shapes.head_dim)
    return why_no_gain(preset, found.block, found.block_density, layer, gpu)


def why_no_gain(preset: Preset, block: int, density: float, layer: Shapes, gpu: Gpu) -> str | None:
    """Why a layer takes no less time with a sparse call, in a sentence; None where it does.

    Args:
        preset: What runs.
        block: Tokens in its blocks.
        density: Share of the pairs that it computes.
        layer: As ``one_layer`` has it.
        gpu: Where.
    """
    dense, cost = dense_step(layer, gpu), call_cost(preset, block, layer.head_dim)
    sparse = cost.fixed + 1e3 * (dense.rest + cost.share(density) * dense.attention)
    sparse = max(sparse, cost.least)
    whole = 1e3 * (dense.rest + dense.attention)
    if sparse < whole:
        return None
    return (
        f"{layer.tokens:,} tokens are too few to gain on this GPU: a layer takes about "
        f"{whole:.1f} ms dense, and {sparse:.1f} with {preset.name} (min_tokens=0 has it sparse)"
    )


def one_layer(tokens: int, heads: int, head_dim: int, samples: int = 1) -> Shapes:
    """A layer of which only attention is known: the rest is about that of most models.

    Args:
        tokens: Of the sequence.
        heads: Of a sample.
        head_dim: Numbers of a head.
        samples: In the batch.
    """
    return Shapes(
        tokens=tokens, layers=1, heads=heads, head_dim=head_dim,
        linear=LAYER * (heads * head_dim) ** 2, samples=samples,
    )  # fmt: skip


def break_even(
    found: Forecast, shapes: Shapes, gpu: Gpu, *, compiled: bool, quantized: str | None = None
) -> int | None:
    """Tokens from which on a preset is worth its while, if it keeps as much of them as planned.

    Returns:
        To two digits; None where it is not even at ``MOST`` tokens, or everything runs dense.
    """
    cost = call_cost(found.preset, found.block, shapes.head_dim)

    def gains(tokens: int) -> bool:
        other = replace(shapes, tokens=tokens)
        dense = dense_step(other, gpu, compiled=compiled, quantized=quantized)
        seconds = len(found.step_density) * dense.seconds
        return seconds >= WORTH * sparse_run(dense, other, cost, found.step_density)

    low, high = max(1, found.preset.least_tokens), MOST
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
