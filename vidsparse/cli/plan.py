"""``vidsparse plan``: what a preset would compute, without weights and without a GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from vidsparse.cli.options import Json, PresetChanges, option
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.checkpoints import Checkpoint, find_checkpoint
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.radial import Radial
from vidsparse.policies.random import Random
from vidsparse.preset import Preset

GRID_STEPS, GRID_SHIFT = 50, 5.0  # of a run when only a grid is given: as Wan 2.1 at 720p


def plan(
    changes: PresetChanges,
    grid: Annotated[
        str | None, option("Tokens as FRAMESxHEIGHTxWIDTH, such as 21x45x80.", "--grid")
    ] = None,
    model: Annotated[
        str | None, option("A model folder or name, such as wan2.1-14b.", "--model")
    ] = None,
    size: Annotated[str | None, option("WIDTHxHEIGHT in pixels.", "--size")] = None,
    frames: Annotated[int | None, option("Frames of the video.", "--frames")] = None,
    preset: Annotated[str, option("A name that `vidsparse presets` lists.")] = "balanced",
    steps: Annotated[
        int | None, option("Denoising steps; by default the model's, or 50.", "--steps")
    ] = None,
    json: Json = False,
) -> None:
    """Say how much a preset computes on a grid."""
    chosen = changes.preset(preset)
    if (grid is None) == (model is None):
        raise BadInputError("give --grid, such as 21x45x80, or --model, such as wan2.1-14b")
    if grid is not None and (size or frames):
        raise BadInputError("--size and --frames belong to --model: a --grid is a size already")
    checkpoint = find_checkpoint(model) if model else _grid_checkpoint()
    tokens = TokenGrid.parse(grid) if grid else _model_grid(checkpoint, size, frames)
    sigmas = checkpoint.sigmas(checkpoint.steps if steps is None else steps)
    found = forecast(chosen, tokens, sigmas, checkpoint.layers)
    if json:
        answer_json(found.to_json())
        return
    answer(_table(found))
    for sentence in found.notes:
        note(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would compute.

    Attributes:
        preset: The preset.
        grid: The tokens.
        token_density: Pairs of the mask at full sparsity over all pairs.
        block_density: The same, once the mask is made of whole blocks: what is computed.
        sigmas: Noise level of each step.
        step_density: Mean density over the layers at each step.
        notes: Sentences the user should read.
    """

    preset: Preset
    grid: TokenGrid
    token_density: float
    block_density: float
    sigmas: list[float]
    step_density: list[float]
    notes: list[str]

    @property
    def mean_density(self) -> float:
        return sum(self.step_density) / len(self.step_density)

    @property
    def dense_steps_share(self) -> float:
        return sum(density >= 1 for density in self.step_density) / len(self.step_density)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        block = self.preset.policy.block
        return {
            "preset": self.preset.name,
            "parameters": self.preset.parameters(),
            "grid": str(self.grid),
            "tokens": self.grid.tokens,
            "block": block,
            "blocks": -(-self.grid.tokens // block),
            "token_density": self.token_density,
            "block_density": self.block_density,
            "mean_density": self.mean_density,
            "dense_steps_share": self.dense_steps_share,
            "steps": len(self.sigmas),
            "sigmas": self.sigmas,
            "step_density": self.step_density,
            "notes": self.notes,
        }


def forecast(preset: Preset, grid: TokenGrid, sigmas: list[float], layers: int | None) -> Forecast:
    """Make the plans of a run from its geometry alone.

    Args:
        preset: What to compute, and when.
        grid: The tokens.
        sigmas: Noise level of each step.
        layers: How many self-attention layers there are; None leaves ``dense_layers`` out.
    """
    mask = _Mask(preset.policy, grid)
    always_dense, notes = _always_dense(preset, grid, layers)
    schedule = preset.schedule
    block_density = mask.at(mask.target)
    notes += mask.planner.notes  # of the mask; the ramp above it would only say the same again
    steps = [
        mask.at(schedule.density(sigma, schedule.dense_layers, mask.target)) for sigma in sigmas
    ]
    return Forecast(
        preset=preset,
        grid=grid,
        token_density=mask.token_density(block_density),
        block_density=block_density,
        sigmas=sigmas,
        step_density=[always_dense + (1 - always_dense) * density for density in steps],
        notes=notes,
    )


class _Mask:
    """The plans of a policy on a grid.

    Methods that look at the data keep as many blocks whatever they see, so random scores stand in
    for theirs.
    """

    def __init__(self, policy: Policy, grid: TokenGrid) -> None:
        if policy.estimator.needs_data:
            policy = dataclasses.replace(policy, estimator=Random())
        self.policy = policy
        self.planner = Planner(policy)
        self._inputs = Inputs(blocks=Blocks(grid, policy.block, torch.device("cpu")))
        self.target = self.planner.target(self._inputs)
        self._known = {1.0: 1.0}

    def at(self, density: float) -> float:
        """The density of the plan that is made when this one is asked for."""
        if density not in self._known:
            self._known[density] = self.planner.plan(self._inputs, density).density
        return self._known[density]

    def token_density(self, block_density: float) -> float:
        """That of the rule itself, where there is one; else masks are made of whole blocks."""
        if isinstance(self.policy.estimator, Radial) and self.policy.density is None:
            blocks = self._inputs.blocks
            return self.policy.estimator.token_density(blocks.grid, blocks.block)
        return block_density


def _always_dense(preset: Preset, grid: TokenGrid, layers: int | None) -> tuple[float, list[str]]:
    """The share of the layers that never is sparse, and what to say of it."""
    if grid.tokens < preset.min_tokens:
        return 1.0, [
            f"{grid.tokens:,} tokens are too few to gain (min_tokens is {preset.min_tokens:,}): "
            "every step would run dense"
        ]
    dense = preset.schedule.dense_layers
    if dense and layers is None:
        return 0.0, [f"the {dense} dense layers are left out: a grid does not say of how many"]
    return (min(1.0, dense / layers) if layers else 0.0), []


def _grid_checkpoint() -> Checkpoint:
    return Checkpoint(source="", geometry=None, steps=GRID_STEPS, flow_shift=GRID_SHIFT)


def _model_grid(checkpoint: Checkpoint, size: str | None, frames: int | None) -> TokenGrid:
    if checkpoint.geometry is None:
        raise BadInputError(
            f"the configs of {checkpoint.source} are not on this machine: give a model folder, or "
            "--grid"
        )
    width, height = (checkpoint.width, checkpoint.height) if size is None else read_size(size)
    count = checkpoint.frames if frames is None else frames
    return checkpoint.geometry.token_grid(count, height, width)


def read_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT.

    Raises:
        BadInputError: When it is not that.
    """
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise BadInputError(f"cannot read the size {text!r}: write WIDTHxHEIGHT, such as 1280x720")
    return int(width), int(height)


def _table(found: Forecast) -> Any:
    table = plain_table(preset="left", **{found.preset.name: "right"})
    facts = found.to_json()
    table.add_row("grid", facts["grid"])
    for name in ("tokens", "block", "blocks"):
        table.add_row(name, f"{facts[name]:,}")
    for name in ("token_density", "block_density"):
        table.add_row(f"{name.replace('_', ' ')} of the mask", f"{facts[name]:.3f}")
    table.add_row(f"mean density over {facts['steps']} steps", f"{found.mean_density:.3f}")
    table.add_row("steps that are dense", f"{found.dense_steps_share:.0%}")
    return table
