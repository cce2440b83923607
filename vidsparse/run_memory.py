"""How much memory of a GPU a run takes: estimated from shapes.

Weights are counted. Activations are the widest moment of a block: so many numbers of each token,
fitted to the one run whose peak was measured (Wan 2.1 14B at 720p, one layer, on an H200:
benchmarks/results/whole_run_wan-14b_ulysses_h200x2.json), so they are rather an order of magnitude
for other models. What planning keeps from call to call is counted (``footprint.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.preset import Preset
from vidsparse.step_time import Shapes

WIDTHS, INNER = 6, 2  # of hidden states, and of the widest linear layer, in the widest moment
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the GPU, without text encoder and VAE.

    Attributes:
        weights: Of all transformers, in 16 bits, or linear layers in FP8.
        activations: Of the widest moment of a block.
        kept: By a session from call to call.
        on_host: The same in host memory.
    """

    weights: int
    activations: int
    kept: int
    on_host: int

    @property
    def total(self) -> int:
        """On the GPU."""
        return self.weights + self.activations + self.kept

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {
            "weights": self.weights,
            "activations": self.activations,
            "kept": self.kept,
            "total": self.total,
            "kept_on_host": self.on_host,
        }

    def row(self) -> tuple[str, str]:
        """What a table says."""
        parts = f"{self.weights / GB:.1f} + {self.activations / GB:.1f} + {self.kept / GB:.2f}"
        return "memory in GB: weights, activations, kept", f"{parts} = {self.total / GB:.1f}"


def estimate(
    preset: Preset,
    grid: TokenGrid,
    shapes: Shapes,
    *,
    weights: int,
    inner: int,
    batch: int,
    saved: int = 0,
) -> Memory:
    """The memory of a run in 16 bits.

    Args:
        preset: What runs.
        grid: Its tokens.
        shapes: What the transformer works on.
        weights: Numbers in all transformers.
        inner: Widest input or output of a linear layer of a block.
        batch: Samples in one forward call.
        saved: Bytes that weights take less than in 16 bits.
    """
    width = shapes.heads * shapes.head_dim
    numbers = shapes.tokens * batch * (WIDTHS * width + INNER * inner)
    sizes = preset, grid, shapes.heads, shapes.head_dim
    branches = shapes.samples // batch
    device, host = (
        layer_state_bytes(*sizes, batch=batch, on_host=on_host).of_run(shapes.layers, branches)
        for on_host in (False, True)
    )
    return Memory(weights=2 * weights - saved, activations=2 * numbers, kept=device, on_host=host)
