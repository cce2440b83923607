"""What ``vidsparse inspect`` sees: the calls it draws, and the error of every sparse call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsparse.cli.plan_picture import HeadMap
from vidsparse.comparison.attention_error import ErrorMeter, one_head, true_mass
from vidsparse.metrics.attention import AttentionError, recall
from vidsparse.policies.work import Work
from vidsparse.sparse_attention import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One attention call that is drawn.

    Attributes:
        call: Where in the generation it stands.
        maps: One for each head.
        heads: Numbers of each head, for JSON.
    """

    call: Call
    maps: list[HeadMap]
    heads: list[dict[str, Any]]

    @property
    def file(self) -> str:
        """Name of its picture."""
        expert = "" if self.call.expert == "transformer" else f"-{self.call.expert}"
        return f"layer{self.call.layer:02d}-step{self.call.step:03d}{expert}.png"

    def to_json(self) -> dict[str, Any]:
        """Where it stands, its picture and its heads."""
        return {"file": self.file, **place(self.call), "heads": self.heads}


@dataclass(eq=False, kw_only=True)
class Inspector:
    """An observer that measures every sparse call and keeps the maps of some.

    Attributes:
        layers: Layers to draw.
        steps: Steps to draw.
        heads: Heads to draw.
        seen: What is drawn: of each layer and step the first guidance branch, in order of time.
        meter: The error of every call.
    """

    layers: Sequence[int]
    steps: Sequence[int]
    heads: Sequence[int]
    seen: dict[tuple[str, int, int], Seen] = field(default_factory=dict)
    meter: ErrorMeter = field(default_factory=ErrorMeter)
    densities: dict[Any, Tensor] = field(default_factory=dict)

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Look at one call; tensors ``(batch, heads, seq, head_dim)`` in raster order."""
        self.meter(call, work, q, k, v, out)
        self.densities[call.key] = work.head_density()
        at = call.expert, call.layer, call.step
        if call.layer in self.layers and call.step in self.steps and at not in self.seen:
            self.seen[at] = look(call, work, self.heads, self.meter.errors[call.key])

    def calls_to_json(self) -> list[dict[str, Any]]:
        """The error of every sparse call, by head, of the first video of the batch."""
        rows = []
        for key, error in self.meter.errors.items():
            density = self.densities[key].expand_as(error.recall)
            measures = error._asdict() | {"density": density}
            heads = {name: _rounded(values[0]) for name, values in measures.items()}
            rows.append(place(self.meter.calls[key]) | heads)
        return rows


def look(call: Call, work: Work, heads: Sequence[int], error: AttentionError) -> Seen:
    """Make the maps of some heads of the first video of the batch.

    Args:
        call: Where it stands.
        work: How it was ordered and planned.
        heads: Which heads.
        error: On sampled rows, of all heads.
    """
    mass = true_mass(work, heads)[:1]
    keep = work.plan.to_block_mask()
    if work.plan.partial is None:
        kept_mass = recall(mass, torch.cat([one_head(keep, head)[:1] for head in heads], dim=1))
    else:  # blocks do not tell which of their pairs took part: of the sampled rows
        kept_mass = error.recall[:1, list(heads)]
    density = work.head_density().expand_as(error.recall)
    maps, numbers = [], []
    for index, head in enumerate(heads):
        found = {
            "head": head,
            "density": round(float(density[0, head]), 6),
            "recall": round(float(kept_mass[0, index]), 6),
            "relative_l1": round(float(error.relative_l1[0, head]), 6),
            "cosine": round(float(error.cosine[0, head]), 6),
        }
        numbers.append(found)
        maps.append(_head_map(work, head, mass[0, index], one_head(keep, head)[0, 0], found))
    return Seen(call=call, maps=maps, heads=numbers)


def place(call: Call) -> dict[str, Any]:
    """Where a call stands, for JSON."""
    names = ("layer", "step", "sigma", "branch", "expert")
    return {name: getattr(call, name) for name in names}


def _head_map(work: Work, head: int, mass: Tensor, keep: Tensor, found: dict[str, Any]) -> HeadMap:
    plan = work.plan
    q_edges = _edges(plan.q_offsets, head, plan.q_len, plan.q_block)
    kv_edges = _edges(plan.kv_offsets, head, plan.kv_len, plan.kv_block)
    queries = torch.tensor(np.diff(q_edges)).clamp(min=1).to(mass)
    coarse = torch.zeros_like(keep)
    for level in work.levels:
        coarse |= one_head(level.plan.to_block_mask(), head)[0, 0] & ~keep
    more = ", the rest through its means" if plan.pooled is not None else ""
    return HeadMap(
        head=head,
        keep=keep.cpu().numpy(),
        coarse=coarse.cpu().numpy(),
        share=(mass / queries[:, None]).cpu().numpy(),
        q_edges=q_edges,
        kv_edges=kv_edges,
        caption=(
            f"density {found['density']:.3f}{more}   keeps {found['recall']:.1%} of the mass   "
            f"output off by {found['relative_l1']:.1%} (relative L1), cosine {found['cosine']:.4f}"
        ),
    )


def _edges(offsets: Tensor | None, head: int, length: int, block: int) -> np.ndarray:
    """Where blocks start, and where the last one ends."""
    if offsets is not None:
        return one_head(offsets, head)[0, 0].cpu().numpy()
    return np.append(np.arange(0, length, block), length)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
