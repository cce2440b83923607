"""A sparse attention call beside dense attention of the same q, k and v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidsparse.kernels.plan import block_of_token
from vidsparse.metrics.attention import (
    AttentionError,
    block_mass,
    cosine,
    dense_rows,
    recall,
    relative_l1,
    sample_rows,
)
from vidsparse.policies.work import Work
from vidsparse.sparse_attention import Call
from vidsparse.stats import CallKey

ROWS = 64  # queries that a call is measured on


@dataclass(eq=False)
class ErrorMeter:
    """An observer that measures every sparse call of a generation on sampled rows.

    Attributes:
        errors: Of each call; ``(batch, heads)``, on the device of the call.
        calls: The calls, by the same keys.
        rows: How many rows to sample.
    """

    errors: dict[CallKey, AttentionError] = field(default_factory=dict)
    calls: dict[CallKey, Call] = field(default_factory=dict)
    rows: int = ROWS

    def __call__(
        self, call: Call, work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor
    ) -> None:
        """Measure one call; tensors ``(batch, heads, seq, head_dim)`` in raster order."""
        self.errors[call.key] = measure_call(work, q, k, v, out, self.rows)
        self.calls[call.key] = call

    def relative_l1(self, layers: int, steps: int) -> list[list[float | None]]:
        """Mean relative L1 over heads and branches, ``[layer][step]``; None where none was seen."""
        means = {key: float(error.relative_l1.mean()) for key, error in self.errors.items()}
        return by_layer_and_step(means, layers, steps)


def measure_call(
    work: Work, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: int = ROWS
) -> AttentionError:
    """Measure the error of each head, head by head to save memory.

    Recall counts the mass of blocks that were computed, of partial ones that of the pairs that
    took part; means that stand in for others are left out.

    Args:
        work: How the call was ordered and planned.
        q: ``(batch, heads, seq, head_dim)`` in raster order.
        k: The same shape.
        v: The same shape.
        out: What the call gave, likewise.
        rows: How many query rows to sample.
    """
    at = sample_rows(q.shape[2], rows, q.device)
    keep = work.plan.to_block_mask()
    parts = []
    for head in range(q.shape[1]):
        exact = dense_rows(
            one_head(q, head)[:, :, at], one_head(k, head), one_head(v, head), work.inputs.scale
        )
        made = one_head(out, head)[:, :, at]
        if work.plan.partial is None:
            held = recall(true_mass(work, [head], at), one_head(keep, head))
        else:
            held = recall_of_pairs(work, head, at)
        parts.append((relative_l1(made, exact), cosine(made, exact), held))
    return AttentionError(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))


def true_mass(work: Work, heads: Sequence[int], rows: Tensor | None = None) -> Tensor:
    """Return the dense attention mass of each pair of the plan's blocks, ``(batch, heads, M, N)``.

    Args:
        work: With q and k in the order of the plan.
        heads: Which heads.
        rows: Which queries, by their position in that order; all when None.
    """
    plan, (q, k, _) = work.plan, work.inputs.qkv
    q_block = block_of_token(plan.q_len, plan.q_block, plan.q_offsets, device=q.device)
    kv_block = block_of_token(plan.kv_len, plan.kv_block, plan.kv_offsets, device=q.device)
    if rows is not None:
        q, q_block = q[:, :, rows], q_block[..., rows]
    blocks = plan.num_q_blocks, plan.num_kv_blocks
    maps = []
    for head in heads:
        query, key, row, column = (one_head(x, head) for x in (q, k, q_block, kv_block))
        maps.append(block_mass(query, key, row, column, blocks, work.inputs.scale))
    return torch.cat(maps, dim=1)


def recall_of_pairs(work: Work, head: int, rows: Tensor) -> Tensor:
    """Share of the dense mass of some rows that a plan with partial blocks holds, ``(batch, 1)``.

    Args:
        work: With q and k in the order of the plan.
        head: Which head.
        rows: Which queries, by their position in that order.
    """
    plan, (q, k, _) = work.plan, work.inputs.qkv
    query, key = one_head(q, head)[:, :, rows].float(), one_head(k, head).float()
    weights = (query @ key.mT * work.inputs.scale).softmax(dim=-1)
    keep = plan.to_block_mask()[..., rows // plan.q_block, :]
    seen = keep.repeat_interleave(plan.kv_block, dim=-1)[..., : plan.kv_len]
    seen = one_head(seen & plan.bits_of_rows(rows), head)
    return (weights * seen).sum(dim=-1).mean(dim=-1)


def one_head(x: Tensor, head: int) -> Tensor:
    """One head of a tensor with its heads in dimension 1, which may be one for all."""
    return x if x.shape[1] == 1 else x[:, head : head + 1]


def by_layer_and_step(
    values: Mapping[CallKey, float], layers: int, steps: int
) -> list[list[float | None]]:
    """Means over guidance branches, ``[layer][step]``; None where there was no call."""
    found: dict[tuple[int, int], list[float]] = {}
    for key, value in values.items():
        found.setdefault((key.layer, key.step), []).append(value)

    def mean(at: tuple[int, int]) -> float | None:
        return sum(found[at]) / len(found[at]) if at in found else None

    return [[mean((layer, step)) for step in range(steps)] for layer in range(layers)]
