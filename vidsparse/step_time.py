"""How long a dense denoising step takes: predicted from a model's shapes and a GPU's rates.

A layer is its linear layers (at the GPU's rate), all else that reads and writes tokens (at its
memory's), both never less than launches take, and self-attention at the rate of the fastest engine
that diffusers takes by itself. The rates of the H200 are fitted to measured forward calls of five
models (benchmarks/results/real_sizes_h200.json and real_sizes_compiled_h200.json) and whole runs of
these and others (pipeline_*_h200.json), the floor of launches to a run of the shipped model, its
text encoder and VAE among it (compare_49x256x256_h200.txt); those of other GPUs are its shares of
the published peak and bandwidth, which makes them estimates.

Linear layers in FP8 were measured in one model, compiled: their rate is that of the eight large
products of a block of Wan 2.1 14B at 75,600 tokens (45.2 TFLOP in 29.1 ms of the device,
block_profile_wan14b_fp8_h200.txt), and what scales and casts take besides is fitted to its runs
(pipeline_wan14b_fp8_h200.json).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vidsparse.errors import BadInputError
from vidsparse.gpus import BANDWIDTH, PEAK, PEAK_FP8, Gpu
from vidsparse.kernels.dense import MODEL
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.table import measured_dense

LINEAR, WIDE, NARROW = 790.0, 577.0, 433.0  # TFLOP/s of an H200: linear layers, heads of 128, 64
OTHER = {False: 0.095, True: 0.043}  # ns for a number of a token in a layer: eager, compiled
MASKED = 1.45  # times as long as without a mask diffusers' own attention takes: HunyuanVideo
FP8 = "fp8"
LINEAR_FP8, SCALING = 1555.0, 0.020  # TFLOP/s of an H200; ns besides, as in OTHER
FLOOR = 1.6  # ms that a layer takes at least besides attention, eager: launches, whatever the GPU


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
        masked: Whether self-attention is given a mask though nothing is padded.
        moves: How many times as much as most models', in blocks that are not compiled, its blocks
            read and write besides attention and linear layers.
    """

    tokens: int
    layers: int
    heads: int
    head_dim: int
    linear: float
    samples: int = 2
    masked: bool = False
    moves: float = 1.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a denoising step, dense.

    Attributes:
        attention: Of self-attention, without a mask.
        rest: Of everything else.
        mask: How many times as long attention takes with the mask that the model gives it.
    """

    attention: float
    rest: float
    mask: float = 1.0

    @property
    def seconds(self) -> float:
        return self.mask * self.attention + self.rest

    @property
    def attention_share(self) -> float:
        """Of the step, from 0 to 1: more than this cannot be gained."""
        return self.mask * self.attention / self.seconds


def dense_step(
    shapes: Shapes, gpu: Gpu, *, compiled: bool = False, quantized: str | None = None
) -> StepTime:
    """The time of a step of diffusers by its own attention.

    Args:
        shapes: What it works on.
        gpu: Where.
        compiled: Whether the blocks are compiled.
        quantized: What the linear layers are in, as ``--quantize`` has it; 16 bits when None.

    Raises:
        BadInputError: As ``check_quantized`` does.
    """
    check_quantized(quantized, gpu, compiled=compiled)
    numbers = shapes.heads * shapes.head_dim
    pairs = 4 * shapes.tokens**2 * numbers * shapes.layers * shapes.samples
    rate = (WIDE if shapes.head_dim >= 96 else NARROW) * gpu.peak / PEAK
    passed = shapes.tokens * shapes.samples
    products = 2 * shapes.linear * passed / (_linear_rate(gpu, quantized) * 1e12)
    each = OTHER[compiled] * (1.0 if compiled else shapes.moves) + (SCALING if quantized else 0.0)
    other = each * 1e-9 * BANDWIDTH / gpu.bandwidth * passed * numbers * shapes.layers
    floor = 0.0 if compiled else 1e-3 * FLOOR * shapes.layers * shapes.samples
    mask = MASKED if shapes.masked else 1.0
    return StepTime(pairs / (rate * 1e12), max(products + other, floor), mask)


def _linear_rate(gpu: Gpu, quantized: str | None) -> float:
    if quantized and gpu.fp8:
        return LINEAR_FP8 * gpu.fp8 / PEAK_FP8
    return LINEAR * gpu.peak / PEAK


def check_quantized(quantized: str | None, gpu: Gpu, *, compiled: bool) -> None:
    """Make sure that something was measured of linear layers in these bits.

    Args:
        quantized: A word of ``--quantize``; 16 bits when None.
        gpu: Where.
        compiled: Whether the blocks are compiled.

    Raises:
        BadInputError: For other words than FP8, blocks that are not compiled, or a GPU without FP8.
    """
    if quantized is None:
        return
    if quantized != FP8:
        raise BadInputError(
            f"how long linear layers with --quantize {quantized} take was not measured, so no time "
            "is predicted: plan fp8 or leave it out, or measure with `vidsparse bench pipeline`"
        )
    if gpu.fp8 is None:
        raise BadInputError(
            f"--quantize fp8 needs compute capability 8.9, and the {gpu.label} has "
            f"{gpu.arch[0]}.{gpu.arch[1]}: plan another --gpu, or leave it out"
        )
    if not compiled:
        raise BadInputError(
            "--quantize fp8 is predicted with --compiled alone: how long its scales and casts take "
            "in blocks that are not compiled was not measured"
        )


def by_engine(step: StepTime, engine: str, head_dim: int, gpu: Gpu) -> StepTime | None:
    """A dense step by another engine; None where ``kernels/measured.json`` has no rate of it.

    Args:
        step: The same by diffusers' own attention.
        engine: "flash" for flash-attn-4, "triton" for our own kernel.
        head_dim: Numbers of a head.
        gpu: Where.
    """
    speeds = measured_dense(Case(device_type="cuda", arch=gpu.arch, head_dim=head_dim))
    if not {engine, MODEL} <= speeds.keys():
        return None
    mask = step.mask if engine == MODEL else 1.0  # others are given no mask
    return replace(step, attention=step.attention * speeds[MODEL] / speeds[engine], mask=mask)
